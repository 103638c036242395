"""Makes and restores backups: a consistent copy of a data directory, also while a server is writing to it.

The database is copied by SQLite's backup function in one read transaction, which blocks no writer. Saved memory is
hard-linked if possible, otherwise copied: a segment's file never changes, and segments that are deleted meanwhile are
removed from the copied database too. Everything is assembled under another name, and renamed once it is complete and on
the disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from model_runtime.interface import segment_file
from sessions.errors import StoreError
from sessions.memory.saved.kv_files import path_in
from sessions.store.data_directory import DATABASE_NAME, KV_NAME
from sessions.store.database import Database
from sessions.store.tables.segments import SegmentTable

MANIFEST_NAME = "backup.json"
COOKIE_KEY_NAME = "cookie.key"
FORMAT = 1
_PARTIAL = ".keepwarm-partial-"
Check = Callable[[Path], str]


@dataclass(frozen=True, slots=True)
class Contents:
    """The manifest of a backup: what it contains. `linked_files` of the segments are hard links to the original files.
    `dropped_segments` were missing or damaged; their conversations are read again when needed. Sizes are in bytes."""

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


def back_up(data_dir: Path, target: Path) -> Contents:
    """Creates `target`, which must not exist yet, or be empty. Raises `StoreError`, and then leaves nothing behind."""
    database = data_dir / DATABASE_NAME
    if not database.is_file():
        raise StoreError(f"There is no Keepwarm database in {data_dir}. Name another directory with --data-dir.")
    if _is_inside(target, data_dir) or _is_inside(data_dir, target):
        raise StoreError(f"A backup of {data_dir} can be neither inside it nor around it. Choose another directory.")
    with _translated(target), _assembled(target) as made:
        with contextlib.closing(_connect(database)) as source:
            _copy_database(source, made / DATABASE_NAME)
        contents = _fill(data_dir, made, lambda path: "")
        _write_synced(made / MANIFEST_NAME, json.dumps(asdict(contents), indent=1).encode())
    return contents


def restore(source: Path, data_dir: Path, check: Check = segment_file.damage) -> Contents:
    """Creates the data directory, which must not exist yet, or be empty. The backup stays unchanged. `check` says what
    is wrong with a segment's file, "" for nothing. Raises `StoreError`, and then leaves nothing behind."""
    manifest = _manifest(source)
    if _is_inside(data_dir, source) or _is_inside(source, data_dir):
        raise StoreError(f"Neither of the data directory {data_dir} and the backup {source} can be inside the other.")
    with _translated(data_dir), _assembled(data_dir) as made:
        database = made / DATABASE_NAME
        _copy_file(source / DATABASE_NAME, database)
        if _sha256(database) != manifest.database_sha256:
            raise StoreError(f"The backup {source} is damaged: its database has changed since the backup was made.")
        return _fill(source, made, check)


def _fill(origin: Path, made: Path, check: Check) -> Contents:
    """Adds the files that the copied database refers to, and removes its rows without an undamaged file."""
    database = Database(made / DATABASE_NAME)
    try:
        troubles = _troubles(database)
        if troubles:
            raise StoreError(f"The database in {origin} is damaged ({troubles[0]}). Take another backup.")
        table = SegmentTable(database)
        linked, dropped = 0, 0
        (made / KV_NAME).mkdir(mode=0o700)
        for row in table.every():
            if not table.knows(row.key):  # removed with the segment that it continues
                continue
            whole = _copy_segment(path_in(origin / KV_NAME, row.key), path_in(made / KV_NAME, row.key), check)
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
    _leave_wal_mode(made / DATABASE_NAME)
    has_key = (origin / COOKIE_KEY_NAME).is_file()
    if has_key:
        _copy_file(origin / COOKIE_KEY_NAME, made / COOKIE_KEY_NAME)
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
        database_sha256=_sha256(made / DATABASE_NAME),
    )


def _copy_segment(origin: Path, target: Path, check: Check) -> bool | None:
    """True if the file was linked, False if it was copied, None if there is no undamaged file."""
    for folder in (target.parent.parent, target.parent):
        folder.mkdir(mode=0o700, exist_ok=True)
    is_linked = True
    try:
        try:
            os.link(origin, target, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError:  # another disk, or a file system without links
            is_linked = False
            _copy_file(origin, target)
    except FileNotFoundError:  # it was deleted just now
        return None
    return None if check(target) else is_linked


def _copy_database(source: sqlite3.Connection, target: Path) -> None:
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    with contextlib.closing(sqlite3.connect(target)) as copy:
        source.backup(copy)


def _leave_wal_mode(database: Path) -> None:
    """Makes the database a single file, without a WAL."""
    with contextlib.closing(sqlite3.connect(database)) as db:
        db.execute("PRAGMA journal_mode = DELETE")


def _connect(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{database.resolve().as_uri()}?mode=rw", uri=True, timeout=30)


def _troubles(database: Database) -> list[str]:
    with database.read() as db:
        found = [str(row[0]) for row in db.execute("PRAGMA integrity_check").fetchall()]
        dangling = db.execute("PRAGMA foreign_key_check").fetchall()
    return [text for text in found if text != "ok"] + [f"a row of {row[0]} refers to a missing row" for row in dangling]


def _manifest(source: Path) -> Contents:
    try:
        found = Contents(**json.loads((source / MANIFEST_NAME).read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise StoreError(f"{source} is not a backup made by `keepwarm backup`: it has no {MANIFEST_NAME}.") from error
    except (OSError, ValueError, TypeError) as error:
        raise StoreError(f"The backup {source} cannot be read ({error}).") from error
    if found.format != FORMAT:
        raise StoreError(f"The backup {source} was made by another version of Keepwarm. Restore it with that version.")
    if not (source / DATABASE_NAME).is_file():
        raise StoreError(f"The backup {source} is damaged: its database is missing.")
    return found


@contextlib.contextmanager
def _assembled(target: Path) -> Iterator[Path]:
    """A private directory beside `target`, renamed to `target` when the block ends, and deleted if it fails."""
    if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
        raise StoreError(f"{target} is not empty. Choose a new or an empty directory; nothing was written.")
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{target.name}{_PARTIAL}*"):
        if not _is_alive(left.name.rpartition("-")[2]):  # left by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
    made = target.with_name(f".{target.name}{_PARTIAL}{os.getpid()}")
    made.mkdir(mode=0o700)
    try:
        yield made
        for folder, _, names in os.walk(made):
            for name in names:
                _sync(Path(folder) / name)
            _sync(Path(folder))
        made.rename(target)
        _sync(target.parent)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


@contextlib.contextmanager
def _translated(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{target} could not be written ({error.strerror or error}). Nothing was left behind."
        ) from error
    except sqlite3.Error as error:
        raise StoreError(f"The database could not be copied ({error}). Nothing was left behind.") from error


def _copy_file(origin: Path, target: Path) -> None:
    with origin.open("rb") as source, open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as copy:
        shutil.copyfileobj(source, copy, 4 * 1024 * 1024)


def _write_synced(path: Path, content: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
