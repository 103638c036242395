"""Counts of what happened since the server started, for the metrics. Never texts."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field, replace

from sessions.types import Receipt, Tier

TTFT_BOUNDS_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
GAP_BOUNDS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class Histogram:
    """`counts[n]` values were at most `bounds_s[n]`; the last count is of those above all bounds."""

    bounds_s: tuple[float, ...]
    counts: tuple[int, ...]
    sum_s: float = 0.0

    def with_value(self, value_s: float) -> Histogram:
        counts = list(self.counts)
        counts[bisect_left(self.bounds_s, value_s)] += 1
        return replace(self, counts=tuple(counts), sum_s=self.sum_s + value_s)


def _empty(bounds_s: tuple[float, ...]) -> Histogram:
    return Histogram(bounds_s, (0,) * (len(bounds_s) + 1))


@dataclass(frozen=True, slots=True)
class Move:
    """KVs that moved from one tier to another. `seconds` is 0 for a move that takes no time (a drop)."""

    count: int = 0
    size_bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Counts:
    """All counts at one moment."""

    turns: int = 0
    fed_tokens: int = 0
    reused_tokens: int = 0
    sampled_tokens: int = 0
    misses: dict[str, int] = field(default_factory=dict)
    moves: dict[tuple[Tier, Tier], Move] = field(default_factory=dict)
    writes: Move = Move()  # files written in the background; the KVs stay where they are
    ttft: Histogram = field(default_factory=lambda: _empty(TTFT_BOUNDS_S))  # with the time in the queue
    gap: Histogram = field(default_factory=lambda: _empty(GAP_BOUNDS_S))  # between two tokens of one answer


class Counters:
    """Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = Counts()

    def snapshot(self) -> Counts:
        with self._lock:
            return self._counts

    def turn(self, receipt: Receipt) -> None:
        """Counts a turn, whose receipt was stored."""
        with self._lock:
            now = self._counts
            misses = Counter(now.misses)
            if receipt.miss_reason is not None:
                misses[receipt.miss_reason.value] += 1
            ttft = now.ttft
            if receipt.ttft_s is not None:
                ttft = ttft.with_value(receipt.ttft_s + receipt.waited_s)
            self._counts = replace(
                now,
                turns=now.turns + 1,
                fed_tokens=now.fed_tokens + receipt.fed_tokens,
                reused_tokens=now.reused_tokens + receipt.reused_tokens,
                sampled_tokens=now.sampled_tokens + receipt.sampled_tokens,
                misses=dict(misses),
                ttft=ttft,
            )

    def token_after(self, seconds: float) -> None:
        """Counts a token that came `seconds` after the one before it in the same answer."""
        with self._lock:
            self._counts = replace(self._counts, gap=self._counts.gap.with_value(seconds))

    def moved(self, origin: Tier, target: Tier, size_bytes: int, seconds: float = 0.0) -> None:
        with self._lock:
            before = self._counts.moves.get((origin, target), Move())
            after = Move(before.count + 1, before.size_bytes + size_bytes, before.seconds + seconds)
            self._counts = replace(self._counts, moves={**self._counts.moves, (origin, target): after})

    def written(self, size_bytes: int, seconds: float) -> None:
        with self._lock:
            before = self._counts.writes
            after = Move(before.count + 1, before.size_bytes + size_bytes, before.seconds + seconds)
            self._counts = replace(self._counts, writes=after)
