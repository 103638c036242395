"""Decides whether to restore a KV or read it again, from the expected seconds of both on this machine."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

from sessions.config import MIB
from sessions.text import mib, tokens

ASSUMED_BYTES_PER_S = 200 * MIB  # until the first restore; slow for any disk but a spinning one
ASSUMED_HOST_BYTES_PER_S = 2048 * MIB  # one copy within memory, or over PCIe
ASSUMED_FILE_S = 0.002  # finding and opening a file, its header, its row in the database
LEARNT_BYTES = 64 * MIB  # a restore of this size has a weight of two thirds in the time per byte
LEARNT_FILES = 16  # the same for the time per file
MAX_SURPRISE = 4.0  # times the expectation; a slower restore counts as this
EASING = 0.1  # each declined restore moves the estimate this far back to the assumption


class RestoreSpeed:
    """Learns the time of a restore from one tier, per byte and per file, with the copy to the device. Thread-safe.

    When a restore takes more or less time than expected, the time per byte and the time per file are each corrected in
    proportion to their part of the expectation, with a weight that grows with the amount restored. So a small file that
    was slow in a busy moment says almost nothing about a large conversation. A disk that was slow for a while must not
    rule out all later restores, which would then never be measured again: each declined restore moves the estimate a
    little back towards the assumption.
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
        """Learns from a restore. `seconds` excludes time spent waiting for something else."""
        if size_bytes <= 0:
            return
        with self._lock:
            for_bytes_s, for_files_s = size_bytes * self._s_per_byte, files * self._s_per_file
            expected_s = for_bytes_s + for_files_s
            surprise = min(seconds / expected_s, MAX_SURPRISE) - 1
            bytes_weight = 1 - math.exp(-size_bytes / LEARNT_BYTES)
            files_weight = 1 - math.exp(-files / LEARNT_FILES)
            self._s_per_byte *= 1 + bytes_weight * surprise * for_bytes_s / expected_s
            self._s_per_file *= 1 + files_weight * surprise * for_files_s / expected_s

    def declined(self) -> None:
        with self._lock:
            self._s_per_byte -= EASING * max(0.0, self._s_per_byte - self._assumed_s_per_byte)
            self._s_per_file -= EASING * max(0.0, self._s_per_file - ASSUMED_FILE_S)


@dataclass(frozen=True, slots=True)
class RestoreChoice:
    """`sentence` tells a person both expectations."""

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
