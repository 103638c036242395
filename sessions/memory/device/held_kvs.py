"""The KVs on the device: what each conversation holds, and leases that no run waits for. The queue is in `leases`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from model_runtime.interface.protocol import KV, Engine
from sessions.memory.device.fair_queue import FairQueue
from sessions.memory.device.pins import Pins
from sessions.memory.device.slots import DeviceSlot
from sessions.memory.memory_records import Holding, Lease, Loss


class HeldKVs:
    """Every method may be called from any thread.

    `Leases` works on the same slots. `changed` is the lock of both: `slots`, `queue` and `losses` are used under it."""

    def __init__(self, engine: Engine, budget_bytes: int, pins: Pins) -> None:
        self.budget_bytes = budget_bytes
        self.pins = pins
        self.engine = engine
        self.changed = threading.Condition()
        self.slots: dict[str, DeviceSlot] = {}
        self.queue = FairQueue()
        self.losses: dict[str, Loss] = {}
        self.is_closed = False
        self.is_suspended = False

    def give_up(self) -> list[tuple[str, str]]:
        """The engine is gone, and all KVs with it. Nothing is granted until `resume`. The owners and conversations."""
        with self.changed:
            self.is_suspended = True
            given_up = [(slot.owner_id, slot.conversation_id) for slot in self.slots.values() if not slot.given_up]
            for slot in list(self.slots.values()):
                slot.given_up = True
                if not (slot.leased or slot.leaving):
                    self._lose(slot)
            return given_up

    def resume(self) -> None:
        """There is an engine again."""
        with self.changed:
            self.is_suspended = False
            self.changed.notify_all()

    def _lose(self, slot: DeviceSlot) -> None:
        del self.slots[slot.conversation_id]
        self.losses[slot.conversation_id] = Loss.ENGINE
        self.changed.notify_all()

    def reserve(
        self, conversation_id: str, owner_id: str, promised_bytes: int, make_way: Callable[[], None] | None = None
    ) -> Lease | None:
        """A lease that no run waits for, given only while the queue is empty and there is free room: for a restore into
        an empty KV, or with `make_way` for idle work behind what the KV holds, while no run is at work. `make_way` is
        called under the lock when a ticket arrives; `settle` must then follow at once."""
        with self.changed:
            if not self.has_room(conversation_id, promised_bytes, make_way is not None):
                return None
            if not self.pins.may_hold(conversation_id, promised_bytes):
                return None
            own = self.slots.get(conversation_id)
            slot = own or DeviceSlot(conversation_id, owner_id, self.engine.new_kv())
            assert slot.owner_id == owner_id, "a KV of another owner"
            self.slots[conversation_id] = slot
            slot.leased = slot.without_run = True
            slot.promised_bytes, slot.unwanted, slot.make_way = promised_bytes, False, make_way or slot.make_way
            held = slot.kv.length_tokens
            ids = slot.held_ids[:held]
            return Lease(conversation_id, slot.kv, held, own is None, None, ids, promised_bytes, slot.ahead_from)

    def has_room(self, conversation_id: str, promised_bytes: int, is_idle_work: bool = False) -> bool:
        """Whether `reserve` would give a lease now."""
        with self.changed:
            own = self.slots.get(conversation_id)
            if self.is_closed or self.is_suspended or self.queue or (own is not None and (own.leased or own.leaving)):
                return False
            if is_idle_work and (self.running_count() or (own is not None and own.unsaved_until > time.monotonic())):
                return False
            if not is_idle_work and own is not None and own.kv.length_tokens:
                return False
            own_bytes = own.held_bytes if own is not None else 0
            held_bytes = sum(slot.held_bytes for slot in self.slots.values())
            return held_bytes + max(0, promised_bytes - own_bytes) <= self.budget_bytes

    def wait_quiet(self, timeout_s: float) -> bool:
        """Waits until no run is working or queued. False when the time is over first, or after `close`."""
        with self.changed:
            self.changed.wait_for(lambda: self.is_closed or not (self.queue or self.running_count()), timeout_s)
            return not (self.is_closed or self.queue or self.running_count())

    def idle(self, conversation_id: str) -> tuple[KV, tuple[int, ...]] | None:
        """An idle conversation's KV and the ids it holds; None when there is nothing to save. Idle work on it ends."""
        with self.changed:
            self.changed.wait_for(lambda: not self.is_yielding(conversation_id))
            slot = self.slots.get(conversation_id)
            if slot is None or slot.leased or slot.leaving or not slot.kv.length_tokens:
                return None
            return slot.kv, slot.held_ids[: slot.kv.length_tokens]

    def borrow(self, conversation_id: str) -> Lease | None:
        """A lease for reading an idle KV, which yields like a reserved one. None when the KV is empty."""
        with self.changed:
            if self.idle(conversation_id) is None:
                return None
            slot = self.slots[conversation_id]
            slot.leased, slot.without_run, slot.unwanted = True, True, False
            held = slot.kv.length_tokens
            return Lease(conversation_id, slot.kv, held, False, None, slot.held_ids, ahead_from=slot.ahead_from)

    def others(self, owner_id: str, conversation_id: str) -> list[tuple[str, KV, tuple[int, ...]]]:
        """The owner's other conversations on the device: their KVs, and the ids that each holds; of one that is being
        read or answered, as far as it has come. The engine knows whether it still does."""
        with self.changed:
            return [
                (slot.conversation_id, slot.kv, slot.known_ids)
                for slot in self.slots.values()
                if slot.owner_id == owner_id and slot.conversation_id != conversation_id and not slot.leaving
            ]

    def reads(self, lease: Lease, ledger: tuple[int, ...], known_tokens: int) -> None:
        """A run is about to have this KV filled with the ledger, of whose beginning it has `known_tokens` already."""
        with self.changed:
            slot = self.slots.get(lease.conversation_id)
            if slot is not None and slot.kv is lease.kv:
                slot.read_ids, slot.read_tokens = ledger, known_tokens

    def has_read(self, lease: Lease, tokens: int) -> None:
        """That many tokens of the run's ledger are in this KV now."""
        with self.changed:
            slot = self.slots.get(lease.conversation_id)
            if slot is not None and slot.kv is lease.kv and slot.read_ids:
                slot.read_tokens = max(slot.read_tokens, tokens)

    def must_yield(self, lease: Lease) -> bool:
        """Whether a reserved lease blocks a ticket or another use of its KV."""
        with self.changed:
            return self.is_closed or bool(self.queue) or self.slots[lease.conversation_id].unwanted

    def settle(
        self,
        lease: Lease,
        held_ids: tuple[int, ...] = (),
        unsaved_for_s: float = 0.0,
        loss: Loss | None = None,
        ahead_from: int | None = None,
        is_fork: bool = False,
    ) -> None:
        """Gives the KV back. It stays on the device until the room is needed, `unsaved_for_s` at least unless it is
        `staged` or dropped on request before. `loss`: why what was in it is gone. `ahead_from`: as in `Lease`;
        `is_fork`: as in `DeviceSlot`."""
        with self.changed:
            slot = self.slots[lease.conversation_id]
            assert slot.kv is lease.kv, "a lease that is not of this conversation's KV"
            if slot.given_up:
                self._lose(slot)
                return
            was_without_run, slot.without_run = slot.without_run, False
            slot.is_fork = slot.is_fork if was_without_run else is_fork
            slot.make_way, slot.ahead_from = lambda: None, ahead_from
            slot.leased, slot.promised_bytes = False, 0
            slot.last_used_at, slot.last_used_s = time.time(), time.monotonic()
            slot.holds(held_ids)
            slot.unsaved_until = time.monotonic() + unsaved_for_s
            self.pins.settled(lease.conversation_id, slot.kv.allocated_bytes, not was_without_run)
            if was_without_run and not slot.kv.allocated_bytes:
                del self.slots[lease.conversation_id]  # nothing came of it
            if loss is not None:
                self.losses[lease.conversation_id] = loss
            self.changed.notify_all()

    def look_again(self) -> None:
        """A change elsewhere, such as a removed pin, affects what may be evicted."""
        with self.changed:
            self.changed.notify_all()

    def staged(self, conversation_id: str, kv: KV) -> None:
        """The writer has what it needs of this KV."""
        with self.changed:
            slot = self.slots.get(conversation_id)
            if slot is not None and slot.kv is kv:
                slot.unsaved_until = 0.0
                self.changed.notify_all()

    def saved(self, conversation_id: str, kv: KV, ids: tuple[int, ...], is_long_rope: bool) -> None:
        """The rows of these ids are on disk, staged for it, or just came from there."""
        with self.changed:
            slot = self.slots.get(conversation_id)
            if slot is not None and slot.kv is kv:
                slot.saved(ids, is_long_rope)

    def went_for_room(self, conversation_id: str) -> bool:
        """Whether its KV was freed for others, and nothing came of it since."""
        with self.changed:
            return conversation_id not in self.slots and self.losses.get(conversation_id) is Loss.FOR_ROOM

    def holdings(self) -> dict[str, Holding]:
        """Of all owners, by conversation."""
        with self.changed:
            return {
                slot.conversation_id: Holding(
                    tokens=slot.kv.length_tokens,
                    used_bytes=(used_bytes := slot.kv.allocated_bytes),
                    reserved_bytes=max(0, slot.promised_bytes - used_bytes),
                    last_used_at=slot.last_used_at,
                )
                for slot in self.slots.values()
            }

    def held_ids(self, conversation_id: str) -> tuple[int, ...]:
        """The ids of the rows on the device, as far as the last holder knew; () if there are none."""
        with self.changed:
            slot = self.slots.get(conversation_id)
            return slot.held_ids[: slot.kv.length_tokens] if slot is not None else ()

    def running_count(self) -> int:
        return sum(slot.leased and not slot.without_run for slot in self.slots.values())

    def is_yielding(self, conversation_id: str) -> bool:
        """Whether it is leased without a run; then that is told to end soon."""
        slot = self.slots.get(conversation_id)
        if slot is None or not slot.without_run:
            return False
        slot.unwanted = True
        slot.make_way()
        return True

    def is_leaving(self, conversation_id: str) -> bool:
        """Whether its KV is being freed right now. Under the lock where the answer must stay true."""
        slot = self.slots.get(conversation_id)
        return slot is not None and slot.leaving
