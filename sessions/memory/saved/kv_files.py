"""The files below `kv/`: the path of each segment's file, and which files are Keepwarm's and may be deleted.

A file is Keepwarm's if its name is that of a segment, it is in that segment's place, it is a regular file and not
reached through a link, and it begins like every file that Keepwarm writes. Nothing else is ever deleted or overwritten,
whatever its name: people put other files into directories.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from model_runtime.interface.errors import SegmentNotSaved
from model_runtime.interface.segments import HEAD_BYTES, begins_like_ours

log = logging.getLogger(__name__)

_NAME = re.compile(r"([0-9a-f]{40})\.kv(\.[0-9]{1,10}\.tmp)?")
_FOLDER = re.compile(r"[0-9a-f]{2}")


class KvFiles:
    """The files of one data directory. `folder` itself may be a link to another disk; nothing inside it is followed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path_of(self, key: str) -> Path:
        return path_in(self.folder, key)

    def is_elsewhere(self) -> bool:
        """Whether the folder is a link to a disk that is not mounted now."""
        return self.folder.is_symlink() and not self.folder.is_dir()

    def is_ours(self, path: Path) -> bool:
        """Whether it may be deleted or overwritten."""
        name = _NAME.fullmatch(path.name)
        if name is None or path.parent != self.path_of(name[1]).parent:
            return False
        if path.parent.is_symlink() or path.parent.parent.is_symlink():
            return False
        return _begins_like_ours(path, may_be_cut=name[2] is not None)

    def delete(self, path: Path) -> bool:
        """Deletes a file. False if there is none, it is not ours, or the system refuses."""
        if not os.path.lexists(path):
            return False
        if not self.is_ours(path):
            log.warning("kv_file_not_ours path=%s", path)
            return False
        try:
            path.unlink()
        except OSError as error:  # its row is gone; the next start tries again
            log.error("kv_file_not_deleted path=%s error=%s", path, error)
            return False
        return True

    def prepare(self, path: Path) -> None:
        """Creates the folders of `path` before it is written. Raises `SegmentNotSaved` if something that is not ours
        is in its place."""
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            for folder in (path.parent.parent, path.parent):
                if folder.is_symlink():
                    raise SegmentNotSaved(_in_the_way(folder))
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise SegmentNotSaved(_not_saved(f"{error.strerror} in {self.folder}.")) from error
        if os.path.lexists(path) and not self.is_ours(path):
            raise SegmentNotSaved(_in_the_way(path))

    def every(self) -> Iterator[Path]:
        """Every file with a name and in a place of ours, temporary files included. Raises `OSError`."""
        for outer in _folders(self.folder):
            for inner in _folders(outer):
                with os.scandir(inner) as entries:
                    names = [entry.name for entry in entries if _NAME.fullmatch(entry.name)]
                yield from (inner / name for name in names if name.startswith(outer.name + inner.name))


def path_in(folder: Path, key: str) -> Path:
    """The path of a segment's file."""
    return folder / key[:2] / key[2:4] / f"{key}.kv"


def _folders(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    yield from (folder / name for name in names if _FOLDER.fullmatch(name))


def _begins_like_ours(path: Path, may_be_cut: bool) -> bool:
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        # It may have become a pipe or a link since: this neither waits for a pipe nor follows a link.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            head = os.pread(descriptor, HEAD_BYTES, 0) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
        finally:
            os.close(descriptor)
    except OSError:  # a file that cannot be read is not known to be ours
        return False
    return head is not None and begins_like_ours(head, may_be_cut)


def _in_the_way(path: Path) -> str:
    return _not_saved(f"{path} is in the way and does not belong to Keepwarm. Move it elsewhere.")


def _not_saved(why: str) -> str:
    return f"This conversation's memory could not be saved: {why}"
