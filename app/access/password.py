"""The page's password: where it comes from, and how it is hidden from the process list."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import stat
from collections.abc import Callable, MutableMapping
from pathlib import Path

VARIABLE = "KEEPWARM_PASSWORD"
LARGEST_FILE_BYTES = 4096
Say = Callable[[str], None]


def given_password(flag: str | None, file: Path | None, environment: MutableMapping[str, str], say: Say) -> str | None:
    """The password from `--password-file`, `--password`, or else the environment. It is removed from the environment:
    child processes need not know it. Raises `ValueError` with a sentence."""
    from_environment = environment.pop(VARIABLE, None)
    if flag is not None and file is not None:
        raise ValueError("Give --password or --password-file, not both.")
    if file is not None:
        return _checked(read_secret(file, "password"), f"The password in {file}")
    if flag is not None:
        password = _checked(flag, "The password")
        if not hide_from_process_list(flag):
            say("Other users of this machine can read the password in the process list; --password-file hides it.")
        return password
    return None if from_environment is None else _checked(from_environment, f"The password in {VARIABLE}")


def hide_from_process_list(secret: str) -> bool:
    """Overwrites the secret where the kernel reads this process's command line from. Returns False where that is not
    possible. It cannot undo what was read in the moment before."""
    raw = os.fsencode(secret)
    cover = ord("x" if set(secret) != {"x"} else "-")
    with contextlib.suppress(OSError, ValueError, IndexError):
        # The name, in brackets, may hold spaces; of the fields after it the 46th and 47th are arg_start and arg_end.
        fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        start, end = int(fields[45]), int(fields[46])
        if 0 < start < end:
            line = ctypes.string_at(start, end - start)
            for at, part in _parts(line):
                if part == raw or part == b"--password=" + raw:
                    ctypes.memset(start + at + len(part) - len(raw), cover, len(raw))
        return all(part not in (raw, b"--password=" + raw) for _, part in _parts(_command_line()))
    return False


def _command_line() -> bytes:
    return Path("/proc/self/cmdline").read_bytes()


def _parts(line: bytes) -> list[tuple[int, bytes]]:
    """(offset, argument) pairs."""
    found, at = [], 0
    for part in line.split(b"\0"):
        found.append((at, part))
        at += len(part) + 1
    return found


def _group_may(owner: int) -> int:
    """What the group may do. A secret that the system hands to a service belongs to root and can be read by the
    service's group: PostgreSQL's rule for its private key."""
    return stat.S_IRGRP if owner == 0 and os.geteuid() != 0 else 0


def read_secret(path: Path, what: str) -> str:
    """The line in a file that only its owner may read, and that messages call a `what` file. Raises `ValueError` with a
    sentence."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            mode = found.st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
                raise ValueError(f"The {what} file {path} is not a file.")
            if others := mode & (stat.S_IRWXG | stat.S_IRWXO) & ~_group_may(found.st_uid):
                who = "Every user of this machine" if others & stat.S_IRWXO else "Its group"
                repair = f"chmod 600 {shlex.quote(str(path))}"
                raise ValueError(f"{who} can open the {what} file {path}, and only you should. Run: {repair}")
            raw = file.read(LARGEST_FILE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"The {what} file {path} cannot be read ({error.strerror or error}).") from error
    if len(raw) > LARGEST_FILE_BYTES:
        raise ValueError(f"The {what} file {path} holds more than {LARGEST_FILE_BYTES} bytes: that is not a {what}.")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"The {what} file {path} is not UTF-8 text.") from error
    text = text.removesuffix("\n").removesuffix("\r")
    if "\n" in text or "\0" in text:
        raise ValueError(f"The {what} file {path} holds more than one line: the {what} must be one line.")
    return text


def _checked(password: str, what: str) -> str:
    if not password.strip():
        raise ValueError(f"{what} must not be empty.")
    return password
