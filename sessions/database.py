"""One SQLite file: a connection a thread, one writer at a time, and the border where its errors are translated."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import sqlite_utils

from sessions.errors import StoreError
from sessions.migrations import MIGRATIONS

log = logging.getLogger(__name__)

BUSY_TIMEOUT_MS = 5_000
CACHE_KIB = 512  # a connection, of which every thread that serves has one; the pages are in the kernel's cache anyway


class Database:
    """`read` and `write` are transactions on the calling thread's own connection. Both raise `StoreError`.

    Durability: WAL with synchronous=FULL. A commit that returned survives `kill -9` of the process (the kernel has
    it), and a power cut as far as the disk keeps what it acknowledged: the WAL is fsynced at every commit. NORMAL would
    keep the first promise alone: 0.1 ms per commit instead of 0.2 to 2.4 ms (measured, ext4 on a virtual disk), a few
    times a turn, which nobody notices beside an answer.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._own = threading.local()
        # A thread's connection goes with its thread; the set only lets `close` find those that are still alive.
        self._connections: weakref.WeakSet[sqlite_utils.Database] = weakref.WeakSet()
        self._connections_lock = threading.Lock()
        self._writer = threading.RLock()
        self._closed = False
        with self._writer, self._translated():
            db = self._connection()
            db.enable_wal()
            self._refuse_newer(db)
            MIGRATIONS.apply(db)

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite_utils.Database]:
        """One snapshot: queries inside see the same moment."""
        with self._translated():
            db = self._connection()
            with db.atomic():
                yield db

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite_utils.Database]:
        """One transaction: all of it is committed when the block ends, or nothing."""
        with self._writer, self._translated():
            db = self._connection()
            # IMMEDIATE waits for a foreign writer (a backup, the sqlite3 shell); a deferred BEGIN would fail at once.
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.commit()
            except BaseException:
                db.rollback()
                raise

    def close(self) -> None:
        """Closes every thread's connection. May be called twice."""
        with self._writer, self._connections_lock:
            self._closed = True
            for db in list(self._connections):
                with contextlib.suppress(sqlite3.Error):
                    db.close()

    def _connection(self) -> sqlite_utils.Database:
        if self._closed:
            raise StoreError("The database has been closed.")
        db = getattr(self._own, "db", None)
        if db is None:
            # check_same_thread is off for `close` alone.
            connection = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_MS / 1000, check_same_thread=False)
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            db = sqlite_utils.Database(connection, execute_plugins=False)
            with self._connections_lock:
                self._connections.add(db)
            self._own.db = db
        return db

    def _refuse_newer(self, db: sqlite_utils.Database) -> None:
        known = {migration.name for migration in MIGRATIONS._migrations}
        if unknown := {migration.name for migration in MIGRATIONS.applied(db)} - known:
            raise StoreError(
                f"The database {self._path} was written by a newer Keepwarm ({', '.join(sorted(unknown))}). "
                "Start that version, or choose another directory with --data-dir."
            )

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            log.error("store_error path=%s error=%s", self._path, error)
            raise StoreError(_sentence(error, self._path)) from error


def _sentence(error: Exception, path: Path) -> str:
    said = str(error)
    if "full" in said or "No space" in said:
        return f"The disk that holds {path.parent} is full. Free some room and try again."
    if "readonly" in said or "unable to open" in said:
        return f"The database {path} cannot be written. Give this user the right to write there."
    if "locked" in said:
        return f"The database {path} is locked by another program. Close that program and try again."
    if "not a database" in said or "malformed" in said:
        return (
            f"The file {path} is damaged or is not a Keepwarm database ({said}). "
            "Put a backup in its place, or choose another directory with --data-dir."
        )
    return f"The database {path} cannot be used ({said})."
