"""Each user's guaranteed share of the device: what the turns of others cannot evict.

Half of the budget is guaranteed, in equal parts to the users who were there within the last hour; the other half goes
to the owner who has the most use for it. While a user holds more than the share, others may evict from it. Pins take at
most the other half, so a turn that needs no more than its own user's share always gets its room in the end: `sum over
the other users of max(share, pinned) <= budget / 2 + budget / 2 - share`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sessions.memory.device.pins import Pins
from sessions.memory.device.slots import DeviceSlot
from sessions.memory.eviction import guaranteed_bytes

PRESENT_S = 3600.0  # after this long without a turn an owner has no guaranteed share


@dataclass(frozen=True, slots=True)
class Shares:
    """What each user who is there holds, and what is guaranteed to each."""

    held_bytes: dict[str, int]
    share_bytes: int
    most_bytes: int  # what a turn of the asking owner can get when all other turns have ended


def shares_of(
    slots: Sequence[DeviceSlot],
    waiting_owners: Iterable[str],
    asking: tuple[str, str],
    budget_bytes: int,
    pins: Pins,
    now: float,
) -> Shares:
    """`asking` is the owner and the conversation that room is needed for; `now` by the monotonic clock."""
    owner_id, conversation_id = asking
    present = {s.owner_id for s in slots if s.leased or now - s.last_used_s < PRESENT_S}
    present |= {owner_id, *waiting_owners}
    share_bytes = guaranteed_bytes(budget_bytes, len(present))
    held: Counter[str] = Counter()
    pinned: Counter[str] = Counter()
    for slot in slots:
        if slot.owner_id in present:
            held[slot.owner_id] += slot.held_bytes
        if slot.conversation_id in pins and slot.conversation_id != conversation_id:
            pinned[slot.owner_id] += slot.held_bytes
    kept_bytes = sum(
        max(pinned[owner], 0 if owner == owner_id else min(held[owner], share_bytes)) for owner in {*held, *pinned}
    )
    return Shares(dict(held), share_bytes, budget_bytes - kept_bytes)
