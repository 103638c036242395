"""One SQLite file: a connection a thread, one writer at a time, and the border where its errors are translated."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import sqlite_utils

from sessions.errors import StoreError
from sessions.migrations import MIGRATIONS
from sessions.paths import refuse_foreign_tables

log = logging.getLogger(__name__)

BUSY_TIMEOUT_MS = 5_000
CLOSE_TIMEOUT_S = 5.0  # so long `close` waits for a thread that is reading


class Database:
    """`read` and `write` are transactions on the calling thread's own connection. Both raise `StoreError`.

    Durability: WAL with synchronous=FULL. A commit that returned survives `kill -9` of the process (the kernel has
    it), and a power cut as far as the disk keeps what it acknowledged: the WAL is fsynced at every commit. NORMAL would
    keep the first promise alone: 0.1 ms per commit instead of 0.2 to 2.4 ms (measured, ext4 on a virtual disk), a few
    times a turn, which nobody notices beside an answer.
    """

    def __init__(self, path: Path, require_in_place: Callable[[], None] = lambda: None) -> None:
        """`require_in_place` is called before every write; it raises `StoreError` when the file was replaced."""
        self._path = path
        self._require_in_place = require_in_place
        self._own = threading.local()
        # A thread's connection goes with its thread; this only lets `close` find those that are alive, and in use.
        self._in_use: weakref.WeakKeyDictionary[sqlite_utils.Database, threading.RLock] = weakref.WeakKeyDictionary()
        self._connections_lock = threading.Lock()
        self._writer = threading.RLock()
        self._closed = False
        with self._writer, self._translated():
            db = self._connection()
            refuse_foreign_tables(path, set(db.table_names()))
            db.enable_wal()
            self._refuse_newer(db)
            with db.atomic():  # all or none, and one fsync instead of three a step
                MIGRATIONS.apply(db)

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite_utils.Database]:
        """One snapshot: queries inside see the same moment."""
        with self._translated():
            db = self._connection()
            with self._in_use[db]:
                self._connection()  # it may have been closed meanwhile
                with db.atomic():
                    yield db

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite_utils.Database]:
        """One transaction: all of it is committed when the block ends, or nothing."""
        with self._writer, self._translated():
            db = self._connection()
            self._require_in_place()
            # IMMEDIATE waits for a foreign writer (a backup, the sqlite3 shell); a deferred BEGIN would fail at once.
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.commit()
            except BaseException:
                db.rollback()
                raise

    def close(self) -> None:
        """Closes every thread's connection. May be called twice. A thread that is still reading ends that first: a
        connection that is closed under it takes the process down."""
        with self._writer, self._connections_lock:
            self._closed = True
            for db, in_use in list(self._in_use.items()):
                if in_use.acquire(timeout=CLOSE_TIMEOUT_S):
                    with contextlib.suppress(sqlite3.Error):
                        db.close()
                    in_use.release()

    def _connection(self) -> sqlite_utils.Database:
        if self._closed:
            raise StoreError("The database has been closed.")
        db = getattr(self._own, "db", None)
        if db is None:
            # check_same_thread is off for `close` alone.
            connection = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_MS / 1000, check_same_thread=False)
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA synchronous = FULL")
            db = sqlite_utils.Database(connection, execute_plugins=False)
            with self._connections_lock:
                self._in_use[db] = threading.RLock()
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
