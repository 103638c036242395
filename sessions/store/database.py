"""One SQLite file, with a connection per thread and one writer at a time; SQLite's errors become `StoreError` here."""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import sqlite_utils

from sessions.errors import StoreError
from sessions.store.data_directory import refuse_foreign_tables
from sessions.store.migrations import MIGRATIONS
from sessions.store.schema import missing
from sessions.store.writable_folder import folder_trouble
from sessions.text_search import excerpt, holds

log = logging.getLogger(__name__)

BUSY_TIMEOUT_S = 5.0
LOG_AGAIN_AFTER_S = 60.0  # the same error: a full disk is tried twice a second, and its log may be on that disk
CLOSE_TIMEOUT_S = 5.0  # how long `close` waits for a thread that is reading
CACHE_KIB = 512  # per connection, and every serving thread has one; the pages are in the kernel's cache anyway


class Database:
    """`read` and `write` are transactions on the calling thread's own connection. Both raise `StoreError`.

    Durability: WAL with synchronous=FULL. A commit that returned survives `kill -9` of the process (the kernel has
    it), and a power cut as far as the disk keeps what it acknowledged: the WAL is fsynced at every commit. NORMAL would
    guarantee only the first: 0.1 ms per commit instead of 0.2 to 2.4 ms (measured, ext4 on a virtual disk). At a few
    commits per turn the difference is not noticeable beside an answer.

    A file that was deleted or replaced while it was open is never written to. SQLite itself would continue, in a file
    that no longer has a name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._own = threading.local()
        # A thread's connection is closed when the thread ends; this lets `close` find those that are alive and in use.
        self._in_use: weakref.WeakKeyDictionary[sqlite_utils.Database, threading.RLock] = weakref.WeakKeyDictionary()
        self._connections_lock = threading.Lock()
        self._writer = threading.RLock()
        self._trouble = ""
        self._logged = ("", 0.0)  # the last error and when
        self._writes = 0
        self._closed = False
        self._files: dict[Path, tuple[int, int]] = {}  # device and inode of each opened file
        with self._writer, self._translated():
            # Stays open until `close`: SQLite deletes the WAL with the last connection.
            self._keeper = self._connect("rwc")
            db = self._connection()
            refuse_foreign_tables(path, set(db.table_names()))
            db.enable_wal()
            self._refuse_newer(db)
            with db.atomic():  # all or none, and one fsync instead of three per step
                MIGRATIONS.apply(db)
            self._refuse_incomplete(db)
            self._keeper.execute("SELECT count(*) FROM sqlite_master").fetchone()  # opens the WAL
            self._files = {file: found for file in (path, self._wal) if (found := _identity(file)) is not None}

    @property
    def trouble(self) -> str:
        """Why the last write failed, as a sentence; "" when it succeeded."""
        return self._trouble

    @property
    def writes(self) -> int:
        """How many write transactions were committed: as long as it is the same, nothing was stored."""
        return self._writes

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite_utils.Database]:
        """A read transaction: all queries inside see the same snapshot."""
        with self._translated(), self._reading() as db, db.atomic():
            yield db

    @contextlib.contextmanager
    def write(self, patience_s: float = BUSY_TIMEOUT_S) -> Iterator[sqlite_utils.Database]:
        """A write transaction: everything is committed when the block ends, or nothing is. `patience_s` is how long it
        waits for another writer, in this process or in another program."""
        try:
            with self._writing(patience_s), self._translated():
                self._refuse_moved()
                db = self._connection()
                with _patience(db, patience_s):
                    # IMMEDIATE waits for another program's write (a backup, the sqlite3 shell); a deferred BEGIN would
                    # fail.
                    db.execute("BEGIN IMMEDIATE")
                try:
                    yield db
                    self._refuse_moved()
                    db.commit()
                    self._writes += 1
                except BaseException:
                    db.rollback()
                    raise
        except StoreError as error:
            if not isinstance(error.__cause__, sqlite3.IntegrityError):  # the row is wrong, not the disk
                self._trouble = str(error)
            raise
        self._trouble = ""
        self._logged = ("", 0.0)

    def moved(self) -> str:
        """A sentence if the database or its WAL was deleted or replaced since it was opened; otherwise ""."""
        for file, opened in self._files.items():
            if _identity(file) != opened:
                return (
                    f"The file {file} was deleted or replaced while the server was running. Nothing more is stored: "
                    "put it back where it was, or stop the server and restore a backup."
                )
        return ""

    def wal_bytes(self) -> int:
        """The size of the WAL: at most this much is missing from the database file itself."""
        try:
            return self._wal.stat().st_size
        except OSError:
            return 0

    def checkpoint(self) -> bool:
        """Moves the WAL into the database file and empties it. False while another thread or program uses the
        database."""
        if not self._writer.acquire(blocking=False):
            return False
        try:
            if self._closed or self.moved():
                return False
            return bool(self._keeper.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0)
        except sqlite3.Error as error:
            log.warning("wal_not_checkpointed error=%s", error)
            return False
        finally:
            self._writer.release()

    def close(self) -> None:
        """Moves the WAL into the file and closes every thread's connection. May be called twice. Waits for threads that
        are still reading: closing a connection during a query crashes the process."""
        with self._writer, self._connections_lock:
            if not self._closed:
                self.checkpoint()
            self._closed = True
            for db, in_use in list(self._in_use.items()):
                if in_use.acquire(timeout=CLOSE_TIMEOUT_S):
                    with contextlib.suppress(sqlite3.Error):
                        db.close()
                    in_use.release()
            with contextlib.suppress(sqlite3.Error):
                self._keeper.close()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite_utils.Database]:
        """This thread's connection. When the file was deleted or replaced, no new connection is opened to what is there
        now; the one that was open all along still reads what was stored."""
        if getattr(self._own, "db", None) is not None or not self.moved():
            db = self._connection()
            with self._in_use[db]:
                yield self._connection()  # it may have been closed meanwhile
            return
        with self._writer:
            if self._closed:
                raise StoreError("The database has been closed.")
            yield sqlite_utils.Database(self._keeper, execute_plugins=False)

    @property
    def _wal(self) -> Path:
        return self.path.with_name(f"{self.path.name}-wal")

    def _connection(self) -> sqlite_utils.Database:
        if self._closed:
            raise StoreError("The database has been closed.")
        db = getattr(self._own, "db", None)
        if db is None:
            db = sqlite_utils.Database(self._connect("rw"), execute_plugins=False)
            with self._connections_lock:
                self._in_use[db] = threading.RLock()
            self._own.db = db
        return db

    def _connect(self, mode: str) -> sqlite3.Connection:
        """`mode` "rw" never creates a new file in place of one that was deleted."""
        address = f"{self.path.resolve().as_uri()}?mode={mode}"
        # check_same_thread is off for `close` and for the keeper, which is used under the writer's lock.
        connection = sqlite3.connect(address, uri=True, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        connection.create_function("holds", 2, holds, deterministic=True)
        connection.create_function("excerpt", 2, _excerpt, deterministic=True)
        return connection

    @contextlib.contextmanager
    def _writing(self, patience_s: float) -> Iterator[None]:
        if not self._writer.acquire(timeout=patience_s):
            raise StoreError(f"The database {self.path} is busy. Try again in a moment.")
        try:
            yield
        finally:
            self._writer.release()

    def _log(self, error: str) -> None:
        logged, at = self._logged
        if error != logged or time.monotonic() - at > LOG_AGAIN_AFTER_S:
            self._logged = (error, time.monotonic())
            log.error("store_error path=%s error=%s", self.path, error)

    def _refuse_moved(self) -> None:
        if moved := self.moved():
            raise StoreError(moved)

    def _refuse_newer(self, db: sqlite_utils.Database) -> None:
        known = {migration.name for migration in MIGRATIONS._migrations}
        if unknown := {migration.name for migration in MIGRATIONS.applied(db)} - known:
            raise StoreError(
                f"The database {self.path} was written by a newer Keepwarm ({', '.join(sorted(unknown))}). "
                "Start that version, or choose another directory with --data-dir."
            )

    def _refuse_incomplete(self, db: sqlite_utils.Database) -> None:
        if lacking := missing(db):
            raise StoreError(
                f"The database {self.path} is damaged: it lacks {', '.join(lacking)}. Restore a backup of it "
                "(keepwarm restore), or choose another directory with --data-dir."
            )

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            self._log(str(error))
            raise StoreError(_sentence(error, self.path)) from error


def _excerpt(text: str, needle: str) -> str | None:
    found = excerpt(text, needle)
    return None if found is None else json.dumps([found.before, found.found, found.after])


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def _patience(db: sqlite_utils.Database, patience_s: float) -> Iterator[None]:
    if patience_s == BUSY_TIMEOUT_S:
        yield
        return
    db.execute(f"PRAGMA busy_timeout = {int(patience_s * 1000)}")
    try:
        yield
    finally:
        db.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")


def _sentence(error: Exception, path: Path) -> str:
    said = str(error)
    # A quota, or a disk that became read-only: SQLite does not tell them apart.
    is_unclear = "disk I/O error" in said or ("readonly" in said and path.exists())
    if is_unclear and (trouble := folder_trouble(path.parent)):
        return trouble
    if "full" in said or "No space" in said:
        return f"The disk that holds {path.parent} is full. Free some space and try again."
    if "readonly" in said or "unable to open" in said:
        if not path.exists():
            return (
                f"The database {path} was deleted or moved while the server was running. Put it back where it was, or "
                "stop the server and restore a backup."
            )
        return f"The database {path} cannot be written. Give this user write permission."
    if "locked" in said:
        return f"The database {path} is locked by another program. Close that program and try again."
    if "not a database" in said or "malformed" in said:
        return (
            f"The file {path} is damaged or is not a Keepwarm database ({said}). "
            "Replace it with a backup, or choose another directory with --data-dir."
        )
    return f"The database {path} cannot be used ({said})."
