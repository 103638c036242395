"""One conversation's KV on the device, and the right to use it: the records that `leases` works on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

from model_runtime.interface.protocol import KV
from sessions.ledger.ledger import common_prefix
from sessions.types import Tier


class Loss(Enum):
    """Why a KV that could have been used is gone."""

    FOR_ROOM = auto()
    BY_HAND = auto()
    DISAGREED = auto()  # with a re-read
    ENGINE = auto()  # the engine hung or died, and was built anew


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of one run to use its conversation's KV. `held_tokens` is what the KV had at the grant, `held_ids`
    which ids, as far as the last holder knew (the engine knows better: it compares). `is_new`: it was made for this
    lease; then `loss` says how an earlier one went, None when this process never had one. Rows from `ahead_from` on
    were read ahead of a message: they may go beyond `held_ids`."""

    conversation_id: str
    kv: KV
    held_tokens: int
    is_new: bool
    loss: Loss | None
    held_ids: tuple[int, ...] = ()
    promised_bytes: int = 0
    ahead_from: int | None = None


@dataclass(eq=False, slots=True)
class Ticket:
    """A place in the line. `granted` is called once on the leases' thread, `moved` with the new place (1 is next)
    under the leases' lock: it must not call back. `refused` comes instead of `granted`, with a sentence, when others'
    guaranteed shares and pins came in the way after the turn was let in."""

    conversation_id: str
    owner_id: str
    promised_bytes: int
    granted: Callable[[Lease], None]
    moved: Callable[[int], None]
    refused: Callable[[str], None] = lambda sentence: None


@dataclass(frozen=True, slots=True)
class Holding:
    """What one conversation's KV costs now."""

    tokens: int
    used_bytes: int
    reserved_bytes: int
    last_used_at: float


@dataclass(frozen=True, slots=True)
class Dropped:
    """A KV that was freed to make room. `kept_on`: where its rows are now; NONE when they would be read again. Of so
    many tokens no tier has any."""

    conversation_id: str
    owner_id: str
    freed_bytes: int
    kept_on: Tier = Tier.NONE
    seconds: float = 0.0
    lost_tokens: int = 0


@dataclass(eq=False, slots=True)
class DeviceSlot:
    conversation_id: str
    owner_id: str
    kv: KV
    last_used_at: float = field(default_factory=time.time)  # to be shown
    last_used_s: float = field(default_factory=time.monotonic)  # to be compared: the other clock may be set
    promised_bytes: int = 0
    leased: bool = False
    leaving: bool = False
    given_up: bool = False  # its engine is gone; whoever still has a lease gives nothing back
    used: bool = False  # by a run, now or before
    warming: bool = False  # leased for something that no run waits for: a restore, or idle work
    unwanted: bool = False  # somebody waits for that to end
    make_way: Callable[[], None] = lambda: None  # asks that to end
    ahead_from: int | None = None
    held_ids: tuple[int, ...] = ()
    unsaved_until: float = 0.0  # until then (monotonic) the writer's copy is worth waiting for
    saved_ids: tuple[int, ...] = ()  # whose rows are on disk, or staged for it
    saved_tokens: int = 0  # so many of `held_ids` are among them

    @property
    def held_bytes(self) -> int:
        return max(self.kv.allocated_bytes, self.promised_bytes)

    @property
    def unsaved_tokens(self) -> int:
        """What no lower tier has, nor will have in a moment. Rows that were read ahead are nobody's loss."""
        tokens = self.kv.length_tokens if self.ahead_from is None else min(self.ahead_from, self.kv.length_tokens)
        return max(0, tokens - self.saved_tokens)

    def holds(self, ids: tuple[int, ...]) -> None:
        """It was given back."""
        self.held_ids = ids
        self.saved_tokens = common_prefix(self.saved_ids, ids)

    def saved(self, ids: tuple[int, ...]) -> None:
        """The rows of these ids are on disk, or staged for it."""
        self.saved_ids = ids
        self.saved_tokens = common_prefix(ids, self.held_ids)


class EvictionTarget(Protocol):
    """Where KVs go when they leave the device, and what that costs."""

    def leaving(self, slot: DeviceSlot) -> Tier:
        """Keeps the rows of an idle KV that is about to be freed for room; returns where. On the leases' thread."""

    def lost_s(self, slot: DeviceSlot) -> float:
        """How much longer its next turn would take without this KV. Under the leases' lock."""


class NoLowerTier:
    """Leaving is losing, and every byte is worth the same."""

    def leaving(self, slot: DeviceSlot) -> Tier:
        return Tier.NONE

    def lost_s(self, slot: DeviceSlot) -> float:
        return float(slot.held_bytes)
