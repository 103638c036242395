"""Estimates how long reading tokens takes on this machine, from recent reads.

A chunk of `n` tokens after `p` others costs `fixed + linear * n + quadratic * n * (p + n / 2)` seconds: Python and
weights once, matrices per token, attention per token and key. The three coefficients are fitted by least squares over
recent chunks, none below zero.

Recent chunks of every size are kept: while a user types, the engine reads a few rows several times a second, and those
alone would not tell what a long text costs.
"""

from __future__ import annotations

import threading
from collections import deque

import numpy as np

_REMEMBERED_CHUNKS = 16  # per size class; a class spans a factor of two


class ReadSpeed:
    """The fitted speed of reading. Thread-safe. Longer reads are cut into chunks of `chunk_tokens`."""

    def __init__(self, chunk_tokens: int) -> None:
        self._chunk_tokens = chunk_tokens
        self._lock = threading.Lock()
        self._chunks: dict[int, deque[tuple[float, float, float]]] = {}  # by bits of n: n, n * keys, seconds
        self._fit: tuple[float, float, float] | None = None

    def observe(self, start: int, end: int, seconds: float) -> None:
        """Records that one forward read positions `start..end` in `seconds`."""
        with self._lock:
            alike = self._chunks.setdefault((end - start).bit_length(), deque(maxlen=_REMEMBERED_CHUNKS))
            alike.append((float(end - start), _key_reads(start, end), seconds))
            self._fit = None

    def estimate_s(self, start: int, end: int) -> float:
        """Expected seconds to read positions `start..end` in chunks. 0 before the first observation."""
        fixed, linear, quadratic = self._coefficients()
        tokens = max(0, end - start)
        chunks = -(-tokens // self._chunk_tokens)
        return fixed * chunks + linear * tokens + quadratic * _key_reads(start, end)

    def _coefficients(self) -> tuple[float, float, float]:
        with self._lock:
            if self._fit is None:
                self._fit = _fit([chunk for alike in self._chunks.values() for chunk in alike])
            return self._fit


def _key_reads(start: int, end: int) -> float:
    tokens = max(0, end - start)
    return tokens * (start + tokens / 2)


def _fit(chunks: list[tuple[float, float, float]]) -> tuple[float, float, float]:
    if not chunks:
        return 0.0, 0.0, 0.0
    rows = np.array([(1.0, n, reads) for n, reads, _ in chunks])
    seconds = np.array([s for _, _, s in chunks])
    # Relative errors count: otherwise one long chunk would outweigh all short ones.
    weights = 1.0 / np.maximum(seconds, 1e-6)
    columns = [0, 1, 2]
    while True:
        found, *_ = np.linalg.lstsq(rows[:, columns] * weights[:, None], seconds * weights, rcond=None)
        if (found >= 0).all() or len(columns) == 1:
            break
        columns.pop(int(np.argmin(found)))  # non-negative least squares by dropping the worst term
    fit = [0.0, 0.0, 0.0]
    for column, value in zip(columns, found, strict=True):
        fit[column] = max(0.0, float(value))
    return fit[0], fit[1], fit[2]
