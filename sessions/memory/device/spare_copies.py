"""Copies that no one goes on with: a fork has a copy of its parent's rows on the device, because a KV's rows lie behind
one another. Most forks are asked once (titles, tags, a side question), so an idle one whose rows are on disk gives the
device back what its parent holds too. One that is asked again after all is restored."""

from __future__ import annotations

from collections.abc import Iterable

from sessions.ledger.ledger import common_prefix
from sessions.memory.device.slots import DeviceSlot

SPARE_AFTER_S = 10.0  # without a second turn
_LOOKED_AT_FIRST = 64  # ids, before all are compared


def spare_in_s(slot: DeviceSlot, now: float) -> float | None:
    """When an idle fork of one turn, whose rows are safe, may go; `now` by the monotonic clock. None: never."""
    if not slot.is_fork or slot.leased or slot.leaving or slot.unsaved_tokens:
        return None
    return max(0.0, slot.last_used_s + SPARE_AFTER_S - now)


def is_copy(slot: DeviceSlot, slots: Iterable[DeviceSlot]) -> bool:
    """Whether another KV of the owner has at least half of its rows."""
    ids = slot.held_ids
    return any(
        2 * common_prefix(other.known_ids, ids) >= len(ids)
        for other in slots
        if other is not slot and other.owner_id == slot.owner_id and not (other.leaving or other.is_fork)
        if other.known_ids[:_LOOKED_AT_FIRST] == ids[:_LOOKED_AT_FIRST]
    )
