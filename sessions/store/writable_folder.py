"""Finds out whether a folder can be written to, by creating a file in it."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from pathlib import Path

PROBE_BYTES = 64 * 1024  # more than the commit of a turn takes

_SENTENCES = {
    errno.ENOSPC: "The disk that holds {folder} is full. Free some space and try again.",
    errno.EDQUOT: "The disk quota for {folder} is used up. Free some space there, or ask for a larger quota.",
    errno.EROFS: "The disk that holds {folder} is read-only. Check its health and make it writable again.",
    errno.EACCES: "The directory {folder} cannot be written to. Give this user write permission.",
    errno.EPERM: "The directory {folder} cannot be written to. Give this user write permission.",
    errno.ENOENT: "The directory {folder} was deleted or moved while the server was running. Put it back where it was.",
    errno.ENOTDIR: "{folder} is no longer a directory. Put the data directory back where it was.",
    errno.EIO: "The disk that holds {folder} reports errors. Check its health, and make a backup.",
}


def folder_trouble(folder: Path) -> str:
    """Why the folder cannot be written to, as a sentence; "" when it can. The probe file has no name where the file
    system supports that, and is gone before this returns."""
    try:
        _write_and_forget(folder)
    except OSError as error:
        sentence = _SENTENCES.get(error.errno or 0, f"The directory {{folder}} cannot be used ({error.strerror}).")
        return sentence.format(folder=folder)
    return ""


def _write_and_forget(folder: Path) -> None:
    name: Path | None = None
    try:
        descriptor = os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
        name = folder / f"keepwarm-{uuid.uuid4().hex}.probe"
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        left = memoryview(bytes(PROBE_BYTES))
        while left:
            left = left[os.write(descriptor, left) :]
    finally:
        os.close(descriptor)
        if name is not None:
            with contextlib.suppress(OSError):
                name.unlink()
