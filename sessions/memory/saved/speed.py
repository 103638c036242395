"""Restore or read again? Expected seconds of both, from speeds measured on this machine."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

from sessions.config import MIB
from sessions.text import mib, tokens

ASSUMED_BYTES_PER_S = 200 * MIB  # until the first restore: slow for any disk that is not spinning
ASSUMED_HOST_BYTES_PER_S = 2048 * MIB  # one copy within memory, or over PCIe
ASSUMED_FILE_S = 0.002  # finding and opening a file, its header, its row in the database
LEARNT_BYTES = 64 * MIB  # a restore of so much has two thirds of the say in what a byte takes
LEARNT_FILES = 16  # the same for what a file takes
MOST_SURPRISE = 4.0  # times the expectation: one bad moment counts as no more
EASING = 0.1  # of the way back to the assumption whenever a restore was declined


class RestoreSpeed:
    """What restoring from one tier took, its copy to the device included: so much a byte and so much a file.
    Thread-safe.

    Where a restore took longer or shorter than expected, each of the two answers for its part of the expectation, and
    the more that was restored, the more it says. So a small file that came late in a busy moment, all of whose wait
    would be its few bytes', says nothing about a large conversation. A disk that was slow for a while must not rule out
    every later restore, which would then never be measured again: each refusal makes the next a little less likely.
    """

    def __init__(self, assumed_bytes_per_s: float = ASSUMED_BYTES_PER_S) -> None:
        self._lock = threading.Lock()
        self._assumed_s_per_byte = 1 / assumed_bytes_per_s
        self._s_per_byte = self._assumed_s_per_byte
        self._s_per_file = ASSUMED_FILE_S

    def estimate_s(self, size_bytes: int, files: int) -> float:
        with self._lock:
            return files * self._s_per_file + size_bytes * self._s_per_byte

    def observe(self, size_bytes: int, files: int, seconds: float) -> None:
        """`seconds` went into restoring; none of them into waiting for something else."""
        if size_bytes <= 0:
            return
        with self._lock:
            for_bytes_s, for_files_s = size_bytes * self._s_per_byte, files * self._s_per_file
            expected_s = for_bytes_s + for_files_s
            surprise = min(seconds / expected_s, MOST_SURPRISE) - 1
            bytes_say = 1 - math.exp(-size_bytes / LEARNT_BYTES)
            files_say = 1 - math.exp(-files / LEARNT_FILES)
            self._s_per_byte *= 1 + bytes_say * surprise * for_bytes_s / expected_s
            self._s_per_file *= 1 + files_say * surprise * for_files_s / expected_s

    def declined(self) -> None:
        with self._lock:
            self._s_per_byte -= EASING * max(0.0, self._s_per_byte - self._assumed_s_per_byte)
            self._s_per_file -= EASING * max(0.0, self._s_per_file - ASSUMED_FILE_S)


@dataclass(frozen=True, slots=True)
class RestoreChoice:
    """`sentence` says both expectations to a person."""

    restores: bool
    sentence: str


def choose(
    restore_s: float, rest_s: float, read_s: float, size_bytes: int, read_tokens: int, place: str = "disk"
) -> RestoreChoice:
    """`restore_s` for `size_bytes` plus `rest_s` to read what they do not hold, against `read_s` for `read_tokens`."""
    restores = restore_s + rest_s < read_s
    verb = "Restored" if restores else "Read again"
    sentence = (
        f"{verb}: restoring {mib(size_bytes)} from {place} was expected to take {restore_s + rest_s:.2f} s, "
        f"reading {tokens(read_tokens)} {read_s:.2f} s."
    )
    return RestoreChoice(restores, sentence)
