"""What a copy of a data directory holds, and how the files of saved memory get into it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from sessions.errors import StoreError
from sessions.maintenance.copying import Check, copy_file, copy_segment, leave_wal_mode, sha256
from sessions.memory.saved.kv_files import path_in
from sessions.store.data_directory import DATABASE_NAME, KV_NAME
from sessions.store.database import Database
from sessions.store.tables.segments import SegmentTable

COOKIE_KEY_NAME = "cookie.key"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Contents:
    """What a copy contains: the manifest of a backup. `linked_files` of the segments are hard links to the original
    files. `dropped_segments` were missing or damaged; their conversations are read again when needed. Sizes are in
    bytes."""

    format: int
    made_at: float  # seconds since the epoch
    conversations: int
    messages: int
    segments: int
    dropped_segments: int
    linked_files: int
    database_bytes: int
    kv_bytes: int
    has_cookie_key: bool
    database_sha256: str


def fill(origin: Path, made: Path, check: Check, with_key: bool = True) -> Contents:
    """Adds to `made` the files of `origin` that the copied database refers to, and removes its rows without an
    undamaged file. `with_key`: the key that identifies browsers too."""
    database = Database(made / DATABASE_NAME)
    try:
        if troubles := _troubles(database):
            raise StoreError(f"The database in {origin} is damaged ({troubles[0]}). Take another backup.")
        table = SegmentTable(database)
        linked, dropped = 0, 0
        (made / KV_NAME).mkdir(mode=0o700)
        for row in table.every():
            if not table.knows(row.key):  # removed with the segment that it continues
                continue
            whole = copy_segment(path_in(origin / KV_NAME, row.key), path_in(made / KV_NAME, row.key), check)
            if whole is None:
                dropped += len(table.remove_with_descendants(row.key)[0])
            else:
                linked += whole
        kept = table.every()
        for path in set((made / KV_NAME).rglob("*.kv")) - {path_in(made / KV_NAME, row.key) for row in kept}:
            path.unlink()
        with database.read() as db:
            conversations = int(db.execute("SELECT count(*) FROM conversations").fetchone()[0])
            messages = int(db.execute("SELECT count(*) FROM messages").fetchone()[0])
    finally:
        database.close()
    leave_wal_mode(made / DATABASE_NAME)
    has_key = with_key and (origin / COOKIE_KEY_NAME).is_file()
    if has_key:
        copy_file(origin / COOKIE_KEY_NAME, made / COOKIE_KEY_NAME)
    return Contents(
        format=FORMAT,
        made_at=time.time(),
        conversations=conversations,
        messages=messages,
        segments=len(kept),
        dropped_segments=dropped,
        linked_files=linked,
        database_bytes=(made / DATABASE_NAME).stat().st_size,
        kv_bytes=sum(row.size_bytes for row in kept),
        has_cookie_key=has_key,
        database_sha256=sha256(made / DATABASE_NAME),
    )


def _troubles(database: Database) -> list[str]:
    with database.read() as db:
        found = [str(row[0]) for row in db.execute("PRAGMA integrity_check").fetchall()]
        dangling = db.execute("PRAGMA foreign_key_check").fetchall()
    return [text for text in found if text != "ok"] + [f"a row of {row[0]} refers to a missing row" for row in dangling]
