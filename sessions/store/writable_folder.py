"""Whether a folder takes files now, found out by making one."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from pathlib import Path

PROBE_BYTES = 64 * 1024  # more than a turn's commit takes

_SENTENCES = {
    errno.ENOSPC: "The disk that holds {folder} is full. Free some room and try again.",
    errno.EDQUOT: "The disk quota for {folder} is used up. Free some room there, or ask for a larger quota.",
    errno.EROFS: "The disk that holds {folder} is read-only now. Make it writable again, and look at its health.",
    errno.EACCES: "The directory {folder} cannot be written. Give this user the right to write there.",
    errno.EPERM: "The directory {folder} cannot be written. Give this user the right to write there.",
    errno.ENOENT: "The directory {folder} was deleted or moved while the server was running. Put it back where it was.",
    errno.ENOTDIR: "{folder} is not a directory any more. Put the data directory back where it was.",
    errno.EIO: "The disk that holds {folder} has errors. Look at its health, and keep a backup.",
}


def folder_trouble(folder: Path) -> str:
    """Why nothing can be written there, as a sentence; "" when it can. The file has no name where the file system can
    do that, and is gone before this returns."""
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
