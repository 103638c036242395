"""Which idle KVs, and which saved segments, go when room is needed. No state, no clock, no engine."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """An idle KV on the device."""

    conversation_id: str
    held_bytes: int
    last_used_at: float


def choose_victims(candidates: Iterable[Candidate], needed_bytes: int) -> tuple[Candidate, ...] | None:
    """The least recently used candidates that free `needed_bytes` together, or None when all of them are not enough
    (then nothing is dropped). One that is not needed because a later one is large is spared."""
    oldest_first = sorted(
        (c for c in candidates if c.held_bytes > 0), key=lambda c: (c.last_used_at, c.conversation_id)
    )
    chosen: list[Candidate] = []
    freed_bytes = 0
    for candidate in oldest_first:
        if freed_bytes >= needed_bytes:
            break
        chosen.append(candidate)
        freed_bytes += candidate.held_bytes
    if freed_bytes < needed_bytes:
        return None
    for candidate in reversed(chosen[:]):
        if freed_bytes - candidate.held_bytes >= needed_bytes:
            chosen.remove(candidate)
            freed_bytes -= candidate.held_bytes
    return tuple(chosen)


@dataclass(frozen=True, slots=True)
class Tail:
    """A saved segment. `is_protected`: a conversation that refers to it is in use."""

    key: str
    parent_key: str
    held_bytes: int
    last_used_at: float
    start_tokens: int
    is_protected: bool


def choose_tails(segments: Iterable[Tail], needed_bytes: int) -> tuple[str, ...] | None:
    """The keys to delete to free `needed_bytes`, or None when that cannot be done (then nothing is deleted). Only tails
    go, the least recently used first, so that what stays of a conversation is its beginning and still of use."""
    by_key = {segment.key: segment for segment in segments}
    children = Counter(segment.parent_key for segment in by_key.values())
    tails = [_aged(segment) for segment in by_key.values() if not children[segment.key] and not segment.is_protected]
    heapq.heapify(tails)
    chosen: list[str] = []
    freed_bytes = 0
    while tails and freed_bytes < needed_bytes:
        segment = by_key[heapq.heappop(tails)[-1]]
        chosen.append(segment.key)
        freed_bytes += segment.held_bytes
        children[segment.parent_key] -= 1
        parent = by_key.get(segment.parent_key)
        if parent is not None and not children[parent.key] and not parent.is_protected:
            heapq.heappush(tails, _aged(parent))
    return tuple(chosen) if freed_bytes >= needed_bytes else None


def _aged(segment: Tail) -> tuple[float, int, str]:
    return segment.last_used_at, -segment.start_tokens, segment.key
