"""How far a slow operation has come, in bytes: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

_LINE_EVERY_S = 5.0
_BAR_EVERY_S = 0.1
_BAR_WIDTH = 30
_MIB, _GIB = 1024**2, 1024**3
Say = Callable[[str], None]


class Progress:
    """Shows how many bytes of `total_bytes` are done. `what` begins a line ("Loading big.gguf"). A bar on `stream`
    (stderr) if it is a terminal, else a sentence through `say` every five seconds. One thread."""

    def __init__(self, what: str, total_bytes: int, say: Say, stream: TextIO | None = None) -> None:
        self._what, self._total_bytes, self._say = what, max(1, total_bytes), say
        self._stream = stream or sys.stderr
        self._on_terminal = self._stream.isatty()
        self._next_s = time.monotonic() + (0.0 if self._on_terminal else _LINE_EVERY_S)
        self._is_shown = False

    def at(self, done_bytes: int) -> None:
        """Tells how many bytes are done now."""
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        done = min(done_bytes, self._total_bytes)
        if self._on_terminal:
            self._next_s = now_s + _BAR_EVERY_S
            self._draw(done)
        else:
            self._next_s = now_s + _LINE_EVERY_S
            self._say(f"{self._what}: {size_text(done)} of {size_text(self._total_bytes)}.")

    def end(self, *, is_complete: bool = True) -> None:
        """Ends the bar, if one is shown."""
        if self._is_shown:
            if is_complete:
                self._draw(self._total_bytes)
            self._stream.write("\n")
            self._stream.flush()

    def _draw(self, done: int) -> None:
        filled = done * _BAR_WIDTH // self._total_bytes
        bar = "#" * filled + "." * (_BAR_WIDTH - filled)
        self._stream.write(f"\r{self._what} [{bar}] {size_text(done)} of {size_text(self._total_bytes)} ")
        self._stream.flush()
        self._is_shown = True


@contextlib.contextmanager
def shown(what: str, total_bytes: int, say: Say) -> Iterator[Callable[[int], None]]:
    """Shows the progress of what is done inside, which calls what it is given with the bytes that are done."""
    progress = Progress(what, total_bytes, say)
    is_complete = False
    try:
        yield progress.at
        is_complete = True
    finally:
        progress.end(is_complete=is_complete)


def size_text(count_bytes: int) -> str:
    """ "1.5 GiB", "300.0 MiB"."""
    return f"{count_bytes / _GIB:.1f} GiB" if count_bytes >= 0.95 * _GIB else f"{count_bytes / _MIB:.1f} MiB"
