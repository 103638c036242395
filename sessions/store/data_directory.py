"""The data directory: private to its user, used only by Keepwarm, and by one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import stat
import struct
from pathlib import Path

from sessions.errors import StoreError

DATABASE_NAME = "keepwarm.db"
LOCK_NAME = "keepwarm.lock"
KV_NAME = "kv"

# What an empty directory may contain: the lock of a server that was killed at once, what a new ext4 volume has, and the
# key by which several servers know the same browsers.
_IGNORED_NAMES = frozenset({LOCK_NAME, "lost+found", "cookie.key"})
# A byte of the database that SQLite neither reads nor locks: its own locks lie at 0x40000000, and files end before.
_LOCKED_BYTE = 1 << 62


class DataDirectory:
    """Holds the locks on the directory from construction to `close`. Raises `StoreError`.

    There are three locks, and the kernel releases each when the process is killed: on the lock file, which names the
    process that holds it; on the directory itself, in case the lock file is removed; and on the database, for file
    systems that cannot lock directories. The last one is an open file description lock on one byte: `flock` on NFS
    would lock the whole file against SQLite, and a lock owned by the process would be lost with the first descriptor of
    the file that is closed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock_fd = self._directory_fd = self._database_fd = -1
        try:
            is_new = not path.exists()
            refuse_foreign(path)
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            made_lock = not (path / LOCK_NAME).exists()
            self._lock_fd = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            self._directory_fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._take_locks()
            if not is_new:
                self._refuse_foreign_database(made_lock)
            path.chmod(0o700)
            # SQLite gives its -wal and -shm files the mode of the database, so the mode is set before it sees the file.
            # The descriptor stays open: closing any descriptor of a file drops SQLite's locks on it.
            self._database_fd = os.open(self.database_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.fchmod(self._database_fd, 0o600)
            self._lock_database()
        except OSError as error:
            self.close()
            raise StoreError(
                f"The data directory {path} cannot be used ({error.strerror or error}). "
                "Give this user write permission, or choose another directory with --data-dir."
            ) from error
        except StoreError:
            self.close()
            raise

    @property
    def database_path(self) -> Path:
        return self.path / DATABASE_NAME

    @property
    def kv_path(self) -> Path:
        return self.path / KV_NAME

    def close(self) -> None:
        """Releases the locks. Every connection to the database must be closed first. May be called twice."""
        for descriptor in (self._database_fd, self._directory_fd, self._lock_fd):
            if descriptor >= 0:
                os.close(descriptor)
        self._lock_fd = self._directory_fd = self._database_fd = -1

    def _take_locks(self) -> None:
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(_in_use(self.path, self._holder())) from None
        try:
            fcntl.flock(self._directory_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(_in_use(self.path, "")) from None
        except OSError:  # NFS cannot lock directories; the database is locked below
            pass
        os.ftruncate(self._lock_fd, 0)
        os.pwrite(self._lock_fd, f"{os.getpid()}\n".encode("ascii"), 0)

    def _lock_database(self) -> None:
        command = getattr(fcntl, "F_OFD_SETLK", None)
        if command is None:  # this system has no such lock
            return
        lock = struct.pack("@hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, _LOCKED_BYTE, 1, 0)
        try:
            fcntl.fcntl(self._database_fd, command, lock)
        except (BlockingIOError, PermissionError):
            raise StoreError(_in_use(self.path, "")) from None
        except OSError:  # a file system without locks
            pass

    def _holder(self) -> str:
        return os.pread(self._lock_fd, 20, 0).decode("ascii", errors="replace").strip()

    def _refuse_foreign_database(self, made_lock: bool) -> None:
        """Raises `StoreError` when another program's file has the database's name, and leaves the directory
        unchanged."""
        try:
            refuse_foreign_database(self.database_path)
        except StoreError:
            if made_lock:
                with contextlib.suppress(OSError):
                    (self.path / LOCK_NAME).unlink()
            raise


def refuse_foreign(path: Path) -> None:
    """Raises `StoreError` for a directory that is not Keepwarm's: it has other files in it, but no database."""
    if not path.is_dir():
        return  # it does not exist yet, or is a file: then `mkdir` fails
    with os.scandir(path) as entries:
        names = {entry.name for entry in entries}
    others = sorted(name for name in names - _IGNORED_NAMES if not _is_empty_kv(path / name))
    if DATABASE_NAME not in names and others:
        shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        raise StoreError(
            f"The directory {path} is not a Keepwarm data directory: it contains {shown}, but no {DATABASE_NAME}. "
            "Nothing in it was changed. Choose an empty or a new directory with --data-dir."
        )


def _is_empty_kv(path: Path) -> bool:
    """Whether it is an empty folder for saved memory: another disk, or a link to one, prepared in advance."""
    return path.name == KV_NAME and path.is_dir() and set(os.listdir(path)) <= _IGNORED_NAMES


def refuse_foreign_database(path: Path) -> None:
    """Raises `StoreError` for a file of another program or of another kind. An empty file is ours."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    is_link = stat.S_ISLNK(status.st_mode)
    if not stat.S_ISREG(path.stat().st_mode if is_link else status.st_mode):
        raise StoreError(_not_ours(path, "it is not a regular file"))
    if not status.st_size:
        return
    with path.open("rb") as file:
        if file.read(16) != b"SQLite format 3\0":
            raise StoreError(_not_ours(path, "it is not a SQLite file"))
    with contextlib.suppress(sqlite3.Error):  # damaged: opening it as the database says how
        # Immutable: takes no locks and creates no files beside it. It does not see what a crash left in the WAL; the
        # tables are checked again when the database is opened.
        db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
        try:
            tables = {str(row[0]) for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            refuse_foreign_tables(path, tables)
        finally:
            db.close()


def refuse_foreign_tables(path: Path, tables: set[str]) -> None:
    """Raises `StoreError` for a database that another program made."""
    if tables and "_sqlite_migrations" not in tables:
        shown = ", ".join(sorted(tables)[:3])
        raise StoreError(_not_ours(path, f"its tables belong to another program: {shown}"))


def _not_ours(path: Path, why: str) -> str:
    return (
        f"The file {path} is damaged or is not a Keepwarm database ({why}). It was not changed. "
        "Replace it with a backup, or choose another directory with --data-dir."
    )


def _in_use(path: Path, holder: str) -> str:
    return (
        f"Another Keepwarm{f' (process {holder})' if holder else ''} is already using the data directory "
        f"{path}. Stop it first, or choose another directory with --data-dir."
    )
