"""Copies of data directories and of parts of them: complete, private and on the disk, or not there at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from sessions.errors import StoreError

_PARTIAL = ".keepwarm-partial-"
Check = Callable[[Path], str]


@contextlib.contextmanager
def assembled(target: Path) -> Iterator[Path]:
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
def translated(target: Path) -> Iterator[None]:
    """Errors of files and of SQLite become `StoreError`."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{target} could not be written ({error.strerror or error}). Nothing was left behind."
        ) from error
    except sqlite3.Error as error:
        raise StoreError(f"The database could not be copied ({error}). Nothing was left behind.") from error


def copy_segment(origin: Path, target: Path, check: Check, is_trusted: bool = True) -> bool | None:
    """True if the file was linked, False if it was copied, None if there is no undamaged file. Unless `is_trusted`, a
    file that another user may change is copied."""
    for folder in (target.parent.parent, target.parent):
        folder.mkdir(mode=0o700, exist_ok=True)
    try:
        is_linked = _linked(origin, target)
        if is_linked and not is_trusted and not is_ours_alone(target):  # the link itself: its name may lead elsewhere
            target.unlink()
            is_linked = False
        if not is_linked:
            copy_file(origin, target)
    except FileNotFoundError:  # it was deleted just now
        return None
    return None if check(target) else is_linked


def _linked(origin: Path, target: Path) -> bool:
    """Links it, if it can be: not from another disk, nor on a file system without links."""
    try:
        os.link(origin, target, follow_symlinks=False)
    except FileNotFoundError:
        raise
    except OSError:
        return False
    return True


def is_ours_alone(path: Path) -> bool:
    """Whether no other user may change the file: through a link it could be changed after it was checked."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return found.st_uid == os.geteuid() and not found.st_mode & 0o022


def copy_file(origin: Path, target: Path) -> None:
    """A private copy; the target must not exist."""
    with origin.open("rb") as source, open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as copy:
        shutil.copyfileobj(source, copy, 4 * 1024 * 1024)


def write_synced(path: Path, content: bytes) -> None:
    """A new private file."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def connect(database: Path) -> sqlite3.Connection:
    """A connection to a database that a server may be using."""
    return sqlite3.connect(f"{database.resolve().as_uri()}?mode=rw", uri=True, timeout=30)


def leave_wal_mode(database: Path) -> None:
    """Makes the database a single file, without a WAL."""
    with contextlib.closing(sqlite3.connect(database)) as db:
        db.execute("PRAGMA journal_mode = DELETE")


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_inside(path: Path, folder: Path) -> bool:
    """Whether it is the folder itself or below it."""
    return path.resolve().is_relative_to(folder.resolve())


def refuse_links(folder: Path) -> None:
    """Raises `StoreError` unless everything below `folder` is a file or a folder: a link would read what is elsewhere,
    and a pipe would never end."""
    for place, folders, names in os.walk(folder):
        for path in (Path(place) / name for name in (*folders, *names)):
            mode = path.lstat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise StoreError(f"{path} is neither a file nor a folder. Nothing was imported.")


def refuse_other_user(folder: Path, command: str) -> None:
    """Raises `StoreError` when another user owns the folder, whose server could not read what this one writes."""
    if folder.exists() and (owner := folder.stat().st_uid) != os.geteuid():
        name = _user(owner)
        raise StoreError(
            f"{folder} belongs to the user {name}, and this is {_user(os.geteuid())}: its server could not read what "
            f"is written now. Run it as that user: runuser -u {name} -- {command}. Nothing was changed."
        )


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"#{number}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
