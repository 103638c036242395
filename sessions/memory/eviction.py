"""Which idle KVs, and which saved segments, go when room is needed. No state, no clock, no engine.

What is worth least goes first: the seconds that keeping it saves its next turn, per byte, the less the longer nobody
used it. Gaps between a person's turns have a long tail, so the chance that a KV is used in the next moment falls about
as one over the time since it was used. Where a byte saves the same everywhere, this is "least recently used first".
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

RECENT_S = 0.1  # two uses within so much are equally recent
GUARANTEED_SHARE = 0.5  # of a tier's budget, divided equally among the users who are there
KEPT_FOR_S = 7 * 24 * 3600.0  # below the device, what nobody used for so long is guaranteed to nobody


@dataclass(frozen=True, slots=True)
class Candidate:
    """An idle KV. `lost_s`: how much longer its next turn takes when it goes."""

    conversation_id: str
    owner_id: str
    held_bytes: int
    idle_s: float
    lost_s: float


def worth(lost_s: float, held_bytes: int, idle_s: float) -> float:
    """Seconds saved per byte, discounted by the time nobody used it."""
    return lost_s / max(1, held_bytes) / (max(0.0, idle_s) + RECENT_S)


def guaranteed_bytes(budget_bytes: int, users: int) -> int:
    """What no other user's turns may take from each of so many users."""
    return int(budget_bytes * GUARANTEED_SHARE) // max(1, users)


def choose_victims(
    candidates: Iterable[Candidate],
    needed_bytes: int,
    asking_owner: str = "",
    held_bytes: Mapping[str, int] | None = None,
    share_bytes: int = 0,
) -> tuple[Candidate, ...] | None:
    """The candidates worth least that free `needed_bytes` together, or None when all that may go are not enough (then
    nothing is dropped). One that is not needed because a later one is large is spared.

    `held_bytes` is what each owner holds altogether, where that is to be protected: another than `asking_owner` loses
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
class Tail:
    """A saved segment, of one owner. `is_protected`: a conversation that refers to it is in use, or pinned. `lost_s`:
    what its next restore would have saved. `is_other`: another model or setting computed it, so that nobody can use it
    now."""

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
        """Whether it counts as part of its owner's share."""
        return self.idle_s < KEPT_FOR_S and not self.is_other


def choose_tails(
    segments: Iterable[Tail], needed_bytes: int, asking_owner: str = "", budget_bytes: int = 0
) -> tuple[str, ...] | None:
    """The keys to delete to free `needed_bytes`, or None when that cannot be done (then nothing is deleted). Only tails
    go, those worth least first, so that what stays of a conversation is its beginning and still of use.

    Of a budget that several owners share, another than `asking_owner` loses a segment only while it holds more than
    its guaranteed share; to nobody in particular ("") everybody gives. What is another model's goes before everything
    else, and is guaranteed to nobody.
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


def _tail_price(segment: Tail) -> tuple[bool, float, int, str]:
    price = worth(segment.lost_s, segment.held_bytes, segment.idle_s)
    return not segment.is_other, price, -segment.start_tokens, segment.key
