"""Chooses which idle KVs and which saved segments are evicted when room is needed. No state, no clock, no engine.

The least valuable goes first. Its value is the seconds that keeping it saves its next turn, per byte, and falls with
the time since it was last used. Gaps between a person's turns have a long tail, so the chance that a KV is used in the
next moment falls roughly as one over that time. If every byte saves the same, this is "least recently used first".
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

RECENT_S = 0.1  # uses closer together than this count as equally recent
GUARANTEED_SHARE = 0.5  # of a tier's budget, divided equally among its present users
KEPT_FOR_S = 7 * 24 * 3600.0  # below the device, what was unused for longer is not part of a guaranteed share


@dataclass(frozen=True, slots=True)
class Candidate:
    """An idle KV. `lost_s` is how much longer its next turn takes if it is evicted."""

    conversation_id: str
    owner_id: str
    held_bytes: int
    idle_s: float
    lost_s: float


def worth(lost_s: float, held_bytes: int, idle_s: float) -> float:
    """Seconds saved per byte, discounted by the time since the last use."""
    return lost_s / max(1, held_bytes) / (max(0.0, idle_s) + RECENT_S)


def guaranteed_bytes(budget_bytes: int, users: int) -> int:
    """The bytes of each of `users` users that other users' turns cannot evict."""
    return int(budget_bytes * GUARANTEED_SHARE) // max(1, users)


def choose_victims(
    candidates: Iterable[Candidate],
    needed_bytes: int,
    asking_owner: str = "",
    held_bytes: Mapping[str, int] | None = None,
    share_bytes: int = 0,
) -> tuple[Candidate, ...] | None:
    """The least valuable candidates that together free `needed_bytes`, or None if all that may be evicted are not
    enough (then nothing is evicted). A candidate that turns out unnecessary because a later one is large is spared.

    `held_bytes` is what each owner holds altogether, for owners that are protected: one other than `asking_owner` loses
    a KV only while it holds more than `share_bytes`.
    """
    held = dict(held_bytes or {})
    chosen: list[Candidate] = []
    freed_bytes = 0
    for candidate in sorted((c for c in candidates if c.held_bytes > 0), key=_price):
        if freed_bytes >= needed_bytes:
            break
        owner = candidate.owner_id
        if owner in held:
            if owner != asking_owner and held[owner] <= share_bytes:
                continue
            held[owner] -= candidate.held_bytes
        chosen.append(candidate)
        freed_bytes += candidate.held_bytes
    if freed_bytes < needed_bytes:
        return None
    for candidate in reversed(chosen[:]):
        if freed_bytes - candidate.held_bytes >= needed_bytes:
            chosen.remove(candidate)
            freed_bytes -= candidate.held_bytes
    return tuple(chosen)


def _price(candidate: Candidate) -> tuple[float, str]:
    return worth(candidate.lost_s, candidate.held_bytes, candidate.idle_s), candidate.conversation_id


@dataclass(frozen=True, slots=True)
class SegmentCandidate:
    """A saved segment of one owner. `is_protected` means that a conversation that refers to it is in use or pinned.
    `lost_s` is what its next restore would save. `is_other` means that another model or setting computed it, so that
    it cannot be used now."""

    key: str
    parent_key: str
    owner_id: str
    held_bytes: int
    idle_s: float
    start_tokens: int
    is_protected: bool
    lost_s: float
    is_other: bool = False

    @property
    def is_guaranteed(self) -> bool:
        """Whether it counts towards its owner's guaranteed share."""
        return self.idle_s < KEPT_FOR_S and not self.is_other


def choose_tails(
    segments: Iterable[SegmentCandidate], needed_bytes: int, asking_owner: str = "", budget_bytes: int = 0
) -> tuple[str, ...] | None:
    """The keys to delete to free `needed_bytes`, or None if that cannot be done (then nothing is deleted). Only
    segments at the end of a chain are deleted, the least valuable first, so that what remains of a conversation is its
    beginning and still useful.

    Of a budget that several owners share, an owner other than `asking_owner` loses a segment only while it holds more
    than its guaranteed share; with `asking_owner` "" every owner may lose segments. Segments of other models go before
    everything else, and are part of no guaranteed share.
    """
    by_key = {segment.key: segment for segment in segments}
    held: Counter[str] = Counter()
    for segment in by_key.values():
        if segment.is_guaranteed:
            held[segment.owner_id] += segment.held_bytes
    share_bytes = guaranteed_bytes(budget_bytes, len({asking_owner, *held})) if asking_owner else 0
    children = Counter(segment.parent_key for segment in by_key.values())
    tails = [_tail_price(s) for s in by_key.values() if not children[s.key] and not s.is_protected]
    heapq.heapify(tails)
    chosen: list[str] = []
    freed_bytes = 0
    while tails and freed_bytes < needed_bytes:
        segment = by_key[heapq.heappop(tails)[-1]]
        if segment.is_guaranteed:
            if segment.owner_id != asking_owner and held[segment.owner_id] <= share_bytes:
                continue
            held[segment.owner_id] -= segment.held_bytes
        chosen.append(segment.key)
        freed_bytes += segment.held_bytes
        children[segment.parent_key] -= 1
        parent = by_key.get(segment.parent_key)
        if parent is not None and not children[parent.key] and not parent.is_protected:
            heapq.heappush(tails, _tail_price(parent))
    return tuple(chosen) if freed_bytes >= needed_bytes else None


def _tail_price(segment: SegmentCandidate) -> tuple[bool, float, int, str]:
    price = worth(segment.lost_s, segment.held_bytes, segment.idle_s)
    return not segment.is_other, price, -segment.start_tokens, segment.key
