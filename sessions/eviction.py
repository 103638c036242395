"""Which idle KVs go when room is needed. No state, no clock, no engine."""

from __future__ import annotations

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
