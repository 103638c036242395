"""`keepwarm cache`: lists the saved memory by what it was computed with, and deletes it on request.

Listing works while a server is running. Deleting takes the data directory's locks, because a running server may be
reading the files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sessions.errors import StoreError
from sessions.memory.saved.kv_files import KvFiles
from sessions.store.data_directory import DATABASE_NAME, refuse_foreign, refuse_foreign_database
from sessions.store.database import Database
from sessions.store.store import Store
from sessions.store.tables.losses import Cause, SavedLoss
from sessions.store.tables.segments import SegmentTable, Served


@dataclass(frozen=True, slots=True)
class Cleared:
    """What was deleted. `files_left` are not Keepwarm's, although they have the name of a segment."""

    segments: int
    size_bytes: int
    files_left: int


def list_saved(data_dir: Path) -> list[Served]:
    """What is saved, that of the most recent server first. Raises `StoreError`."""
    _refuse_missing(data_dir)
    with contextlib.closing(Database(data_dir / DATABASE_NAME)) as database:
        return [served for served in SegmentTable(database).served() if served.segments]


def clear(data_dir: Path, everything: bool, before: Callable[[int, int], None]) -> Cleared:
    """Deletes what was saved by other models and settings than those of the most recent server, or everything. Calls
    `before` with the number of segments and bytes that are about to be deleted. Raises `StoreError`, with nothing
    deleted, while a server runs."""
    _refuse_missing(data_dir)
    with contextlib.closing(Store(data_dir)) as store:
        served, files = store.segments.served(), KvFiles(store.kv_dir)
        if not everything and not any(one.is_last for one in served) and any(one.segments for one in served):
            raise StoreError(
                "It is not known which model this directory was last served with. Start the server once with the model "
                "whose memory you want to keep, or delete everything with --all."
            )
        kept = set() if everything else {one.numerics for one in served if one.is_last}
        doomed = [row for row in store.segments.every() if row.fingerprint not in kept]
        before(len(doomed), sum(row.size_bytes for row in doomed))
        users = {user for row in doomed for user in row.users}
        store.losses.record(users, SavedLoss(Cause.CLEARED))
        store.segments.remove(row.key for row in doomed)
        paths = [files.path_of(row.key) for row in doomed]
        left = [path for path in paths if not files.delete(path) and path.exists()]
        return Cleared(len(doomed), sum(row.size_bytes for row in doomed), len(left))


def _refuse_missing(data_dir: Path) -> None:
    """Raises `StoreError` if there is no database, or the directory is not Keepwarm's."""
    try:
        refuse_foreign(data_dir)
        refuse_foreign_database(data_dir / DATABASE_NAME)
    except OSError as error:
        raise StoreError(f"The data directory {data_dir} cannot be read ({error.strerror or error}).") from error
    if not (data_dir / DATABASE_NAME).exists():
        raise StoreError(f"There is no data directory {data_dir}. Name another one with --data-dir.")
