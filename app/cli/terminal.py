"""Prints lines to the terminal. A closed terminal, a broken pipe or a full disk never ends the server."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import TextIO

Say = Callable[[str], None]


def prepare() -> None:
    """Prepares the standard streams; call it before any file is opened. Closed streams become the null device, so that
    no database or socket gets their descriptors. Characters that the terminal's encoding lacks are printed as
    escapes."""
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
    """Prints one line on stdout."""
    _print(sentence, sys.stdout)


def fail(sentence: str, code: int) -> int:
    """Prints one line on stderr; returns `code`."""
    _print(f"keepwarm: {sentence}", sys.stderr)
    return code


def on_one_line(sentence: str) -> str:
    """The sentence with line feeds and other control characters, for example from a path, as escapes."""
    return "".join(c if c.isprintable() or "\udc80" <= c <= "\udcff" else ascii(c)[1:-1] for c in sentence)


def _print(sentence: str, stream: TextIO) -> None:
    try:
        stream.write(on_one_line(sentence) + "\n")
        stream.flush()
    except (OSError, ValueError):  # the reader has gone, the disk is full, the stream was closed
        _silence(stream)


def _silence(stream: TextIO) -> None:
    """Redirects the stream to the null device: what is still in its buffer would fail again, at the latest at exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
