"""A directory that is either complete or refused: built beside its place, checksummed, then renamed into it.

`manifest.json` lists every file with its size and CRC-32 (about 3 GB/s, against 0.4 GB/s for SHA-256, so that every
start can verify everything). It is written last; a directory without it was never finished.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MANIFEST = "manifest.json"
_READ_BYTES = 1 << 20
# The names that `tempfile` gives them: a model's name with its version, or "download", and eight characters.
_LEFTOVER = re.compile(r"\.(download|.+-v[0-9]+(-float16)?)-(stale-)?[a-z0-9_]{8}")


def broken_because(directory: Path) -> str | None:
    """None if every file is present with its size and checksum; else what is wrong, as a clause."""
    try:
        files = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))["files"]
        expected = {name: (int(entry["bytes"]), int(entry["crc32"])) for name, entry in files.items()}
    except FileNotFoundError:
        return "it was never finished"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"its {MANIFEST} cannot be read"
    for name, (size_bytes, crc) in expected.items():
        path = directory / name
        try:
            if path.stat().st_size != size_bytes:
                return f"{name} has {path.stat().st_size:,} bytes instead of {size_bytes:,}"
            if crc32(path) != crc:
                return f"{name} has changed on disk"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def build(directory: Path, fill: Callable[[Path], None]) -> None:
    """Replaces `directory` by what `fill` writes into an empty one, so that it is never seen half-written. The old one
    is deleted if everything in it was sealed here, else renamed.

    Whatever `fill` raises is passed on, and leaves nothing behind.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        fill(fresh)
        _seal(fresh)
        if not os.path.lexists(directory):
            os.replace(fresh, directory)
        elif is_ours(directory):
            stale = Path(tempfile.mkdtemp(prefix=f".{directory.name}-stale-", dir=directory.parent))
            os.replace(directory, stale / "old")
            os.replace(fresh, directory)
            shutil.rmtree(stale, ignore_errors=True)
        else:
            os.replace(directory, set_aside(directory))
            os.replace(fresh, directory)
        _sync(directory.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


@contextmanager
def only_one(lock_path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Holds an advisory lock between processes; calls `waiting` once if another process has it. The lock ends with its
    process, so a killed start never blocks the next one."""
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    with lock_path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def set_aside(directory: Path) -> Path:
    """A free name beside the directory, to rename what must not be deleted."""
    names = (directory.with_name(f"{directory.name}.set-aside-{number}") for number in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name))


def is_ours(directory: Path) -> bool:
    """Whether it contains only what its manifest lists. A directory gets its manifest before it is renamed into place,
    so one without a manifest was made by another program."""
    if directory.is_symlink() or not directory.is_dir():
        return False
    try:
        named = {*json.loads((directory / MANIFEST).read_text(encoding="utf-8"))["files"], MANIFEST}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    every = list(directory.rglob("*"))
    found = {path.relative_to(directory).as_posix() for path in every if not path.is_dir() or path.is_symlink()}
    return found <= named and not any(path.is_symlink() for path in every)


@dataclass(frozen=True, slots=True)
class Sealed:
    """A directory that was built here: its size, and when it was last used, in seconds since 1970."""

    path: Path
    size_bytes: int
    used_at_s: float


def mark_used(directory: Path) -> None:
    """Remembers that it is used now."""
    with contextlib.suppress(OSError):  # of another user, or on a disk that is read only
        os.utime(directory / MANIFEST)


def sealed_in(parent: Path) -> list[Sealed]:
    """The directories below `parent` that contain only what was built here, the one that was used last first."""
    found = []
    for path in parent.glob("[!.]*"):
        if is_ours(path):
            size_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            found.append(Sealed(path, size_bytes, (path / MANIFEST).stat().st_mtime))
    return sorted(found, key=lambda one: one.used_at_s, reverse=True)


def budget_bytes(parent: Path, share: float, most_bytes: int) -> int:
    """What the directories below `parent` may take together: a share of the disk space that is free or theirs, at most
    `most_bytes`."""
    theirs = sum(one.size_bytes for one in sealed_in(parent))
    return min(most_bytes, int(share * (shutil.disk_usage(parent).free + theirs)))


def keep_within(parent: Path, budget: int, kept: Path) -> list[Sealed]:
    """Deletes what was not used for longest until all together take at most `budget` bytes. `kept` stays, and so does
    what it was made of (`kept` without an ending). Returns what was deleted. Call with the lock held."""
    every = sealed_in(parent)
    size_bytes = sum(one.size_bytes for one in every)
    gone = []
    for one in reversed(every):
        if size_bytes <= budget:
            break
        if not kept.name.startswith(one.path.name):
            shutil.rmtree(one.path, ignore_errors=True)
            size_bytes -= one.size_bytes
            gone.append(one)
    return gone


def clear(parent: Path, waiting: Callable[[], None]) -> list[Sealed]:
    """Deletes everything below `parent` that was built here, and returns it. Waits for a build, after `waiting`."""
    if not parent.is_dir():
        return []
    with only_one(parent / ".lock", waiting):
        sweep(parent)
        every = sealed_in(parent)
        for one in every:
            shutil.rmtree(one.path, ignore_errors=True)
        return every


def sweep(parent: Path) -> None:
    """Removes the leftovers of killed builds, recognised by their names. Call with the lock held."""
    for leftover in parent.glob(".*-*"):
        if leftover.is_dir() and not leftover.is_symlink() and _LEFTOVER.fullmatch(leftover.name):
            shutil.rmtree(leftover, ignore_errors=True)


def crc32(path: Path) -> int:
    """CRC-32 of a file."""
    crc = 0
    with path.open("rb") as handle:
        while chunk := handle.read(_READ_BYTES):
            crc = zlib.crc32(chunk, crc)
    return crc


def _seal(directory: Path) -> None:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    for path in files:
        _sync(path)
    entries = {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "crc32": crc32(path)} for path in files
    }
    manifest = directory / MANIFEST
    manifest.write_text(json.dumps({"files": entries}, indent=1), encoding="utf-8")
    _sync(manifest)
    _sync(directory)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
