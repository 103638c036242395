"""The data directory: private to its user, and used by one process at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from sessions.errors import StoreError

DATABASE_NAME = "keepwarm.db"
LOCK_NAME = "keepwarm.lock"
KV_NAME = "kv"


class DataDirectory:
    """Holds the lock on the directory from construction to `close`. Raises `StoreError`.

    `flock` and not a file that merely exists: the kernel lets go of it when the process is killed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock_fd = -1
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.chmod(0o700)
            self._lock_fd = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
            self._take_lock()
            # SQLite gives its -wal and -shm files the mode of the database, so the mode is set before it sees the file.
            os.close(os.open(self.database_path, os.O_RDWR | os.O_CREAT, 0o600))
            self.database_path.chmod(0o600)
        except OSError as error:
            self.close()
            raise StoreError(
                f"The data directory {path} cannot be used ({error.strerror or error}). "
                "Give this user the right to write there, or choose another one with --data-dir."
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
        """Lets go of the lock. May be called twice."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock_fd, 20, 0).decode("ascii", errors="replace").strip()
            raise StoreError(
                f"Another Keepwarm{f' (process {holder})' if holder else ''} is already using the data directory "
                f"{self.path}. Stop it first, or choose another directory with --data-dir."
            ) from None
        os.ftruncate(self._lock_fd, 0)
        os.pwrite(self._lock_fd, f"{os.getpid()}\n".encode("ascii"), 0)
