"""Imports an exported owner into another data directory, whose server does not run. Nothing there is overwritten."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from model_runtime.interface import segment_file
from model_runtime.interface.numerics import difference
from sessions.errors import StoreError
from sessions.maintenance.copying import (
    Check,
    connect,
    copy_file,
    copy_segment,
    is_inside,
    refuse_other_user,
    translated,
)
from sessions.maintenance.foreign_database import write_anew
from sessions.maintenance.owner_export import Exported, key_mark, manifest
from sessions.maintenance.owner_rows import OF_OWNERS, copy_owner
from sessions.maintenance.owner_rules import refuse_dangling, refuse_impossible, refuse_taken
from sessions.memory.saved.kv_files import KvFiles, path_in
from sessions.store.data_directory import DATABASE_NAME, KV_NAME
from sessions.store.database import Database
from sessions.store.store import Store
from sessions.store.tables.losses import Cause, LossTable, SavedLoss
from sessions.store.tables.segments import SegmentTable

_PARTIAL = ".keepwarm-import-"
_CLASHES = (
    ("conversation", "SELECT count(*) FROM main.conversations WHERE id IN (SELECT id FROM there.conversations)"),
    (
        "named conversation",
        "SELECT count(*) FROM main.conversations m JOIN there.conversations t USING (owner_id, key)",
    ),
    ("API key", "SELECT count(*) FROM main.api_keys WHERE id IN (SELECT id FROM there.api_keys)"),
    ("added item", "SELECT count(*) FROM main.added_items WHERE id IN (SELECT id FROM there.added_items)"),
    ("response", "SELECT count(*) FROM main.responses WHERE id IN (SELECT id FROM there.responses)"),
)


@dataclass(frozen=True, slots=True)
class Imported:
    """What was added. `dropped_segments` of the saved memory were missing, damaged or of another model."""

    owner_id: str
    conversations: int
    messages: int
    segments: int
    dropped_segments: int
    has_same_key: bool  # the server knows browsers by the same key as the other one


def import_owner(source: Path, data_dir: Path, with_saved: bool, check: Check = segment_file.damage) -> Imported:
    """Adds an export to a data directory, which is made if it does not exist. `check` says what is wrong with a
    segment's file, "" for nothing. Raises `StoreError`, and then nothing was added. Whoever made the export is not
    trusted: it brings rows of its owner alone, and none that refers to what is here already."""
    refuse_other_user(data_dir, f"keepwarm import {source} --data-dir {data_dir}")
    exported = manifest(source)
    if with_saved and not exported.is_warm:
        raise StoreError(f"The export {source} holds no saved memory: export it with --warm, or import it without.")
    if is_inside(source, data_dir) or is_inside(data_dir, source):
        raise StoreError(f"Neither of the data directory {data_dir} and the export {source} can be inside the other.")
    with contextlib.closing(Store(data_dir)) as store, translated(data_dir), _copied(source, data_dir) as copy:
        with contextlib.closing(Store(copy.parent)) as prepared:  # brings an older one up to date
            refuse_impossible(prepared, exported.owner_id)
            left_out = _choose_saved(prepared.database, store, source, with_saved)
        return _add(store, copy, source, exported, left_out, check)


def _choose_saved(prepared: Database, store: Store, source: Path, with_saved: bool) -> int:
    """Leaves only the segments that the server can use. Returns how many were left out although they were wanted.
    Raises `StoreError` when it computes with another model or other settings than all of them."""
    table = SegmentTable(prepared)
    every = table.every()
    if not with_saved:
        users = {user for row in every for user in row.users}
        LossTable(prepared).record(users, SavedLoss(Cause.MOVED))
        table.remove(row.key for row in every)
        return 0
    last = next((one for one in store.segments.served() if one.is_last), None)
    if last is None or not every:
        return 0
    usable = [row for row in every if row.fingerprint == last.numerics]
    if not usable:
        why = difference(every[0].fingerprint, last.numerics) or "it was computed otherwise"
        raise StoreError(
            f"The saved memory in {source} is of no use to the server of {store.data_dir}, which runs {last.model}: "
            f"{why}. Import it without --warm: the conversations are read again."
        )
    others = {row.key for row in every} - {row.key for row in usable}
    table.remove(others)
    return len(others)


def _add(store: Store, copy: Path, source: Path, exported: Exported, left_out: int, check: Check) -> Imported:
    before = {row.key for row in store.segments.every()}
    made: list[Path] = []
    try:
        with contextlib.closing(connect(store.data_dir / DATABASE_NAME)) as db:
            db.execute("ATTACH ? AS there", [f"{copy.resolve().as_uri()}?mode=rw"])
            _refuse_clashes(db, source)
            refuse_taken(db, exported.owner_id)
            with contextlib.closing(Database(copy)) as prepared:
                dropped = _bring_files(SegmentTable(prepared), store, source, before, made, check)
                kept = len(SegmentTable(prepared).every())
            with db:
                copy_owner(db, exported.owner_id, with_saved=True)
                refuse_dangling(db)
            conversations, messages = (
                int(db.execute(f"SELECT count(*) FROM there.{table}").fetchone()[0])  # noqa: S608
                for table in ("conversations", "messages")
            )
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        raise
    has_same_key = key_mark(store.data_dir) in ("", exported.key_mark)
    return Imported(exported.owner_id, conversations, messages, kept, dropped + left_out, has_same_key)


def _bring_files(
    table: SegmentTable, store: Store, source: Path, before: set[str], made: list[Path], check: Check
) -> int:
    """Puts the files of saved memory in their places, before their rows. Returns how many were dropped."""
    dropped, files = 0, KvFiles(store.kv_dir)
    for row in table.every():
        if row.key in before or not table.knows(row.key):
            continue
        target = files.path_of(row.key)
        files.prepare(target)
        files.delete(target)  # of a crash: a file without a row
        made.append(target)  # before it is there: half of it may be, when the disk is full
        origin = path_in(source / KV_NAME, row.key)
        if copy_segment(origin, target, check, is_trusted=False) is None:
            target.unlink(missing_ok=True)
            dropped += len(table.remove_with_descendants(row.key)[0])
    return dropped


def _refuse_clashes(db: sqlite3.Connection, source: Path) -> None:
    for what, sql in _CLASHES:
        count = int(db.execute(sql).fetchone()[0])
        if count:
            verb = f"{what} of {source} is" if count == 1 else f"{what}s of {source} are"
            raise StoreError(f"{count:,} {verb} here already. Nothing was imported.")


@contextlib.contextmanager
def _copied(source: Path, data_dir: Path) -> Iterator[Path]:
    """The export's rows, in a database of our own, alone in a folder."""
    for left in data_dir.glob(f"{_PARTIAL}*"):  # of a process that was killed: the directory is locked now
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=data_dir) as folder:
        made = Path(folder) / "made"
        made.mkdir(mode=0o700)
        copy_file(source / DATABASE_NAME, Path(folder) / DATABASE_NAME)
        write_anew(Path(folder) / DATABASE_NAME, made / DATABASE_NAME, OF_OWNERS)
        yield made / DATABASE_NAME
