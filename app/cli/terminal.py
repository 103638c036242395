"""What is printed gets there, or is lost: a terminal, a pipe or a full disk never ends a server."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import TextIO

Say = Callable[[str], None]


def prepare() -> None:
    """Call before anything is opened. Closed standard streams become the null device, so that no database or socket
    gets their numbers; what the terminal's encoding lacks is printed as an escape."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(os.dup(number), "w", encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(sentence: str) -> None:
    """One line on stdout."""
    _print(sentence, sys.stdout)


def fail(sentence: str, code: int) -> int:
    """One line on stderr; returns `code`."""
    _print(f"keepwarm: {sentence}", sys.stderr)
    return code


def on_one_line(sentence: str) -> str:
    """Line feeds and other control characters, of a path for example, as escapes."""
    return "".join(c if c.isprintable() or "\udc80" <= c <= "\udcff" else ascii(c)[1:-1] for c in sentence)


def _print(sentence: str, stream: TextIO) -> None:
    try:
        stream.write(on_one_line(sentence) + "\n")
        stream.flush()
    except (OSError, ValueError):  # the reader has gone, the disk is full, the stream was closed
        _silence(stream)


def _silence(stream: TextIO) -> None:
    """What is still in the buffer would fail again, at the latest when Python ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
