"""A conversation's KV on the device and the queue ticket for it: what `leases` works on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from model_runtime.interface.protocol import KV
from sessions.errors import CacheFull
from sessions.ledger.ledger import common_prefix
from sessions.memory.memory_records import Lease
from sessions.types import Tier


class Ticket:
    """A place in the queue for a lease, and the lease once it is granted.

    `moved` is called with every new place (1 is next) under the leases' lock: it must not call back. `wait` may be
    called from any thread; the rest is for the leases."""

    def __init__(
        self,
        conversation_id: str,
        owner_id: str,
        promised_bytes: int,
        moved: Callable[[int], None] = lambda place: None,
    ) -> None:
        self.conversation_id = conversation_id
        self.owner_id = owner_id
        self.promised_bytes = promised_bytes
        self.moved = moved
        self._lease: Lease | None = None
        self._refusal = ""
        self._answered = threading.Event()

    def wait(self, timeout_s: float | None = None) -> Lease | None:
        """The lease; None when the ticket was withdrawn before, or when the time is over. Raises `CacheFull` when
        guaranteed shares and pins of others prevented it after the turn was admitted."""
        self._answered.wait(timeout_s)
        if self._refusal:
            raise CacheFull(self._refusal)
        return self._lease

    def grant(self, lease: Lease) -> None:
        self._lease = lease
        self._answered.set()

    def refuse(self, sentence: str) -> None:
        self._refusal = sentence
        self._answered.set()

    def withdraw(self) -> None:
        self._answered.set()


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
    given_up: bool = False  # its engine is gone; a lease that is still out gives nothing back
    used: bool = False  # by a run, now or before
    is_fork: bool = False  # its only turn so far began with a copy of another conversation's beginning
    without_run: bool = False  # leased for something that no run waits for: a restore, or idle work
    unwanted: bool = False  # a ticket or another use waits for that to end
    make_way: Callable[[], None] = lambda: None  # asks that to end
    ahead_from: int | None = None
    held_ids: tuple[int, ...] = ()
    read_ids: tuple[int, ...] = ()  # the ledger that a run has it filled with, while it is leased
    read_tokens: int = 0  # of these, how many it is known to have: its rows may still be those of another branch
    unsaved_until: float = 0.0  # until then (monotonic) the writer's copy is worth waiting for
    saved_ids: tuple[int, ...] = ()  # whose rows are on disk, or staged for it
    saved_is_long_rope: bool = False  # those rows have the long frequencies of long RoPE
    saved_tokens: int = 0  # how many of `held_ids` are among them

    @property
    def held_bytes(self) -> int:
        return max(self.kv.allocated_bytes, self.promised_bytes)

    @property
    def known_ids(self) -> tuple[int, ...]:
        """The ids of the rows that it has, as far as is known; while a run reads, those of the run's ledger."""
        return self.read_ids[: min(self.read_tokens, self.kv.length_tokens)] if self.read_ids else self.held_ids

    @property
    def unsaved_tokens(self) -> int:
        """What no lower tier has, nor will have in a moment. Losing rows that were read ahead costs nothing."""
        tokens = self.kv.length_tokens if self.ahead_from is None else min(self.ahead_from, self.kv.length_tokens)
        return max(0, tokens - self.saved_tokens)

    def holds(self, ids: tuple[int, ...]) -> None:
        """It was given back."""
        self.held_ids, self.read_ids, self.read_tokens = ids, (), 0
        self._count_saved()

    def saved(self, ids: tuple[int, ...], is_long_rope: bool) -> None:
        """The rows of these ids are on disk, or staged for it."""
        self.saved_ids, self.saved_is_long_rope = ids, is_long_rope
        self._count_saved()

    def _count_saved(self) -> None:
        is_same = self.kv.is_long_rope is self.saved_is_long_rope
        self.saved_tokens = common_prefix(self.saved_ids, self.held_ids) if is_same else 0


class EvictionTarget(Protocol):
    """Where KVs go when they leave the device, and what that costs."""

    def leaving(self, slot: DeviceSlot) -> Tier:
        """Keeps the rows of an idle KV that is about to be freed for room; returns where. On the leases' thread."""

    def lost_s(self, slot: DeviceSlot) -> float:
        """How much longer its next turn would take without this KV. Under the leases' lock."""


class NoLowerTier:
    """An evicted KV is lost, and every byte is worth the same."""

    def leaving(self, slot: DeviceSlot) -> Tier:
        return Tier.NONE

    def lost_s(self, slot: DeviceSlot) -> float:
        return float(slot.held_bytes)
