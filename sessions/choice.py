"""Restore or read again? Expected seconds of both, from speeds measured on this machine."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from sessions.config import MIB
from sessions.text import mib, tokens

ASSUMED_BYTES_PER_S = 200 * MIB  # until the first restore: slow for any disk that is not spinning
ASSUMED_HOST_BYTES_PER_S = 2048 * MIB  # one copy within memory, or over PCIe
FILE_S = 0.002  # opening a file, its header, and waiting for the engine's next step
LEARNING = 0.3  # weight of the newest restore
EASING = 0.1  # of the way back to the assumption whenever a restore was declined


class RestoreSpeed:
    """What restoring from one tier took, its copy to the device included. Thread-safe.

    A single slow restore (a busy disk) must not rule out every later one, which would then never be measured again:
    each refusal makes the next a little less likely.
    """

    def __init__(self, assumed_bytes_per_s: float = ASSUMED_BYTES_PER_S) -> None:
        self._lock = threading.Lock()
        self._assumed_s_per_byte = 1 / assumed_bytes_per_s
        self._s_per_byte = self._assumed_s_per_byte

    def estimate_s(self, size_bytes: int, files: int) -> float:
        with self._lock:
            return files * FILE_S + size_bytes * self._s_per_byte

    def observe(self, size_bytes: int, files: int, seconds: float) -> None:
        if size_bytes <= 0:
            return
        newest = max(0.0, seconds - files * FILE_S) / size_bytes
        with self._lock:
            self._s_per_byte += LEARNING * (newest - self._s_per_byte)

    def declined(self) -> None:
        with self._lock:
            self._s_per_byte -= EASING * max(0.0, self._s_per_byte - self._assumed_s_per_byte)


@dataclass(frozen=True, slots=True)
class Choice:
    """`sentence` says both expectations to a person."""

    restores: bool
    sentence: str


def choose(
    restore_s: float, rest_s: float, read_s: float, size_bytes: int, read_tokens: int, place: str = "disk"
) -> Choice:
    """`restore_s` for `size_bytes` plus `rest_s` to read what they do not hold, against `read_s` for `read_tokens`."""
    restores = restore_s + rest_s < read_s
    verb = "Restored" if restores else "Read again"
    sentence = (
        f"{verb}: restoring {mib(size_bytes)} from {place} was expected to take {restore_s + rest_s:.2f} s, "
        f"reading {tokens(read_tokens)} {read_s:.2f} s."
    )
    return Choice(restores, sentence)
