"""The secret that signs cookies: 32 random bytes in a file that only the server's user may read."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

from sessions.errors import StoreError

SECRET_BYTES = 32
LARGEST_BYTES = 4096
FEWEST_DIFFERENT_BYTES = 8  # about 30 of 32 random bytes differ; in a file that a crash left behind, one does


def load_secret(path: Path, say: Callable[[str], None] = lambda sentence: None) -> bytes:
    """The secret at `path`, made on first use. Raises `StoreError` for what cannot be a secret. Permissions that are
    too wide are narrowed, and `say` reports that."""
    try:
        return _read(path, say)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise StoreError(_sentence(error, path)) from error
    try:
        _make(path)
        return _read(path, say)
    except OSError as error:
        raise StoreError(_sentence(error, path)) from error


def _make(path: Path) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_bytes(SECRET_BYTES))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _read(path: Path, say: Callable[[str], None]) -> bytes:
    # Non-blocking, so that a pipe at this path does not block the start.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise StoreError(_refusal(path, "is not a file"))
        if found.st_uid != os.geteuid():
            raise StoreError(_refusal(path, "belongs to another user, who can read and change it"))
        secret = file.read(LARGEST_BYTES + 1)
        if len(secret) < SECRET_BYTES:
            raise StoreError(_refusal(path, f"has {len(secret)} bytes instead of {SECRET_BYTES}"))
        if len(secret) > LARGEST_BYTES or len(set(secret)) < FEWEST_DIFFERENT_BYTES:
            raise StoreError(_refusal(path, "does not hold random bytes"))
        if found.st_mode & 0o077:
            os.fchmod(descriptor, 0o600)
            say(
                f"The key {path} could be read by other users; now only this user can. If others use this machine, "
                "stop the server and delete that file: a new one is made, and every browser must log in again."
            )
    return secret


def _refusal(path: Path, what: str) -> str:
    return (
        f"The key {path}, which checks cookies, {what}. Restore it from a backup, or remove it: "
        "then a new one is made, and every browser must log in again."
    )


def _sentence(error: OSError, path: Path) -> str:
    if error.errno == errno.ELOOP:
        return _refusal(path, "is a symbolic link")
    if error.errno == errno.EISDIR:
        return _refusal(path, "is a directory")
    return (
        f"The key {path} cannot be used ({error.strerror or error}). Give this user permission to read and write there."
    )
