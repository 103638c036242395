"""Who holds a KV on the device, and who may use one: room is promised before a run starts, and waiting owners take
turns.

At every moment the bytes that are held and the bytes that are promised together stay within the budget:
`sum(max(allocated, promised if leased else 0)) <= budget`. A dropped KV counts until the engine has freed it.

No thread blocks while holding the lock: the engine's `release` waits for the engine thread, so it is called outside,
with the KV marked as leaving. One thread grants; a run that waits holds nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from model_runtime.interface.protocol import KV
from sessions.errors import CacheFull, ConversationBusy
from sessions.memory.device.guaranteed_shares import Shares, shares_of
from sessions.memory.device.held_kvs import HeldKVs
from sessions.memory.device.slots import DeviceSlot, EvictionTarget, NoLowerTier, Ticket
from sessions.memory.device.spare_copies import is_copy, spare_in_s
from sessions.memory.eviction import Candidate, choose_victims
from sessions.memory.memory_records import Dropped, Lease, Loss
from sessions.text import mib
from sessions.types import Tier
from sessions.worker import Worker

log = logging.getLogger(__name__)


class Leases:
    """The queue, and evictions for its head. Every method may be called from any thread except the engine's."""

    def __init__(
        self, held: HeldKVs, on_dropped: Callable[[Dropped], None], eviction_target: EvictionTarget | None = None
    ) -> None:
        self.held = held
        self._engine = held.engine
        self._on_dropped = on_dropped
        self._eviction_target = eviction_target or NoLowerTier()
        self._surrendered: list[Dropped] = []  # to be told from a thread that may wait for the database
        self._worker = Worker("leases", self._serve)

    def start(self) -> None:
        self._worker.start()

    def close(self, timeout_s: float) -> None:
        """Grants nothing more; tickets that wait are withdrawn. KVs stay with the engine, which frees them when it is
        closed."""
        with self.held.changed:
            self.held.is_closed = True
            for ticket in self.held.queue.tickets:
                ticket.withdraw()
            self.held.changed.notify_all()
        self._worker.close(timeout_s)

    def refuse_beyond_shares(self, owner_id: str, conversation_id: str, promised_bytes: int) -> None:
        """Raises `CacheFull` with the numbers when others' guaranteed shares and pins leave too little for a turn."""
        most_bytes = self.most_bytes(owner_id, conversation_id)
        if promised_bytes > most_bytes:
            raise CacheFull(_hopeless(promised_bytes, most_bytes, self.held.budget_bytes))

    def most_bytes(self, owner_id: str, conversation_id: str) -> int:
        """What a turn can get beside others' guaranteed shares and pins, once all other turns have ended."""
        with self.held.changed:
            return self._shares(owner_id, conversation_id).most_bytes

    def take_idle(self) -> list[KV]:
        """The device refused memory: every idle KV that is not pinned, to be freed by the engine at once. On the engine
        thread, which may take the lock because its holders never wait for the engine."""
        with self.held.changed:
            idle = [
                s
                for s in self.held.slots.values()
                if not (s.leased or s.leaving or s.conversation_id in self.held.pins)
            ]
            for slot in idle:
                del self.held.slots[slot.conversation_id]
                self.held.losses[slot.conversation_id] = Loss.FOR_ROOM
            given = [slot for slot in idle if slot.kv.allocated_bytes]
            self._surrendered += [_dropped(s, Tier.DISK if s.saved_tokens else Tier.NONE) for s in given]
            self.held.changed.notify_all()
            return [slot.kv for slot in given]

    def enter(self, ticket: Ticket) -> None:
        """Joins the queue."""
        with self.held.changed:
            if self.held.is_closed:
                ticket.withdraw()
                return
            self.held.queue.enter(ticket)
            for slot in self.held.slots.values():
                slot.make_way()
            self.held.changed.notify_all()

    def leave(self, ticket: Ticket) -> bool:
        """Leaves the queue. True when the ticket was still waiting; then it is withdrawn and never granted."""
        with self.held.changed:
            has_left = self.held.queue.leave(ticket)
            if has_left:
                ticket.withdraw()
            self.held.changed.notify_all()
            return has_left

    def drop(self, conversation_id: str) -> int:
        """Frees an idle conversation's KV; returns its bytes once the engine has freed them. Raises
        `ConversationBusy` when a run uses it."""
        with self.held.changed:
            self.held.changed.wait_for(
                lambda: not (self.held.is_leaving(conversation_id) or self.held.is_yielding(conversation_id))
            )
            slot = self.held.slots.get(conversation_id)
            if slot is None:
                return 0
            if slot.leased:
                raise ConversationBusy("An answer is being written with this memory. Stop it or wait for it to end.")
            slot.leaving = True
        return self._free(slot, Loss.BY_HAND)

    def forget(self, conversation_id: str) -> None:
        """Frees the KV of a conversation that is being deleted."""
        self.held.pins.unpin(conversation_id)
        self.drop(conversation_id)
        with self.held.changed:
            self.held.losses.pop(conversation_id, None)

    def _serve(self) -> None:
        while True:
            with self.held.changed:
                while (step := self._next_step()) is None and not self.held.is_closed:
                    self.held.changed.wait(self._patience_s())
                if self.held.is_closed or step is None:
                    return
            try:
                step()
            except Exception:
                log.exception("lease_step_failed")

    def _next_step(self) -> Callable[[], None] | None:
        """What can be done for the first ticket that may run, else with a copy that no one goes on with; None for
        nothing. No ticket overtakes the first, so it cannot starve: idle KVs are dropped for it, leased ones come back,
        and what it was promised fits the budget alone."""
        if self._surrendered:
            return partial(self._on_dropped, self._surrendered.pop(0))
        if self.held.is_suspended:
            return None
        return self._next_grant() or self._next_copy()

    def _next_grant(self) -> Callable[[], None] | None:
        running = [slot.owner_id for slot in self.held.slots.values() if slot.leased and not slot.without_run]
        ticket = self.held.queue.first(running, self._engine.max_concurrent)
        if ticket is None:
            return None
        own = self.held.slots.get(ticket.conversation_id)
        if own is not None and (own.leased or own.leaving):
            return None
        own_bytes = own.held_bytes if own is not None else 0
        held_bytes = sum(slot.held_bytes for slot in self.held.slots.values())
        needed_bytes = held_bytes + max(0, ticket.promised_bytes - own_bytes) - self.held.budget_bytes
        if needed_bytes <= 0:
            return self._grant(ticket, own)
        shares = self._shares(ticket.owner_id, ticket.conversation_id)
        victims = self._choose(needed_bytes, own, ticket.owner_id, shares)
        for slot in victims:
            slot.leaving = True
        if victims:
            return partial(self._make_room, victims)
        now = time.monotonic()
        is_moving = any(s.leased or s.leaving or s.unsaved_until > now for s in self.held.slots.values())
        if is_moving or ticket.promised_bytes <= shares.most_bytes:
            return None
        self.held.queue.leave(ticket)  # since it was admitted, other owners have acquired shares that it cannot evict
        return partial(ticket.refuse, _hopeless(ticket.promised_bytes, shares.most_bytes, self.held.budget_bytes))

    def _shares(self, owner_id: str, conversation_id: str) -> Shares:
        asking = (owner_id, conversation_id)
        return shares_of(
            [*self.held.slots.values()],
            self.held.queue.owners,
            asking,
            self.held.budget_bytes,
            self.held.pins,
            time.monotonic(),
        )

    def _patience_s(self) -> float | None:
        """How long until an unsaved KV that a ticket waits for may go after all, or a copy is spare; None for ever."""
        now = time.monotonic()
        left = [s.unsaved_until - now for s in self.held.slots.values() if s.unsaved_until > now and not s.leased]
        left = left if self.held.queue else []
        if not self.held.is_suspended:
            left += [wait_s for slot in self._unpinned() if (wait_s := spare_in_s(slot, now)) is not None]
        return min(left, default=None)

    def _unpinned(self) -> list[DeviceSlot]:
        return [slot for slot in self.held.slots.values() if slot.conversation_id not in self.held.pins]

    def _next_copy(self) -> Callable[[], None] | None:
        now = time.monotonic()
        for slot in self._unpinned():
            if spare_in_s(slot, now) == 0:
                if is_copy(slot, self.held.slots.values()):
                    slot.leaving = True
                    return partial(self._free_copy, slot)
                slot.is_fork = False  # what it began with is nowhere else any more
        return None

    def _free_copy(self, slot: DeviceSlot) -> None:
        dropped = replace(_dropped(slot, Tier.DISK), is_copy=True)
        self._free(slot, Loss.FOR_ROOM)
        self._on_dropped(dropped)

    def _choose(self, needed_bytes: int, own: DeviceSlot | None, owner_id: str, shares: Shares) -> list[DeviceSlot]:
        now = time.monotonic()
        idle = [s for s in self.held.slots.values() if not (s.leased or s.leaving or s is own or s.unsaved_until > now)]
        idle = [s for s in idle if s.conversation_id not in self.held.pins]
        # What is leaving already will be room in a moment: wait for it instead of dropping more.
        needed_bytes -= sum(slot.held_bytes for slot in self.held.slots.values() if slot.leaving)
        candidates = [
            Candidate(s.conversation_id, s.owner_id, s.held_bytes, now - s.last_used_s, self._lost_s(s)) for s in idle
        ]
        chosen = choose_victims(candidates, needed_bytes, owner_id, shares.held_bytes, shares.share_bytes)
        return [self.held.slots[candidate.conversation_id] for candidate in chosen or ()]

    def _lost_s(self, slot: DeviceSlot) -> float:
        """What its next turn would lose. A fork of one turn has hardly ever another; most of its rows are elsewhere."""
        is_spare = slot.is_fork and is_copy(slot, self.held.slots.values())
        return 0.0 if is_spare else self._eviction_target.lost_s(slot)

    def _grant(self, ticket: Ticket, slot: DeviceSlot | None) -> Callable[[], None]:
        if slot is None:
            slot = DeviceSlot(ticket.conversation_id, ticket.owner_id, self._engine.new_kv())
            self.held.slots[ticket.conversation_id] = slot
        # A KV belongs to one conversation of one owner for all its life.
        assert (slot.conversation_id, slot.owner_id) == (ticket.conversation_id, ticket.owner_id)
        self.held.queue.leave(ticket)
        is_new, slot.used = not slot.used, True
        slot.leased, slot.promised_bytes = True, ticket.promised_bytes
        loss = self.held.losses.pop(ticket.conversation_id, None)
        held = slot.kv.length_tokens
        ids = slot.held_ids[:held]
        promised_bytes = ticket.promised_bytes
        lease = Lease(ticket.conversation_id, slot.kv, held, is_new, loss, ids, promised_bytes, slot.ahead_from)
        return partial(ticket.grant, lease)

    def _make_room(self, victims: list[DeviceSlot]) -> None:
        for slot in victims:
            started = time.perf_counter()
            kept_on = Tier.NONE
            try:
                kept_on = self._eviction_target.leaving(slot)
            except Exception:  # what is not kept is read again; the queue must go on
                log.exception("kv_not_kept conversation=%s", slot.conversation_id)
            dropped = _dropped(slot, kept_on)
            self._free(slot, Loss.FOR_ROOM)
            self._on_dropped(replace(dropped, seconds=time.perf_counter() - started))

    def _free(self, slot: DeviceSlot, loss: Loss) -> int:
        freed_bytes = slot.kv.allocated_bytes
        try:
            self._engine.release(slot.kv)
        except Exception:  # a dead engine holds no memory; the queue must go on
            log.exception("kv_release_failed conversation=%s", slot.conversation_id)
        with self.held.changed:
            del self.held.slots[slot.conversation_id]
            self.held.losses[slot.conversation_id] = loss
            self.held.changed.notify_all()
        log.info("kv_dropped conversation=%s bytes=%d why=%s", slot.conversation_id, freed_bytes, loss.name)
        return freed_bytes


def _dropped(slot: DeviceSlot, kept_on: Tier) -> Dropped:
    lost_tokens = 0 if kept_on is Tier.HOST else slot.unsaved_tokens
    return Dropped(slot.conversation_id, slot.owner_id, slot.kv.allocated_bytes, kept_on, lost_tokens=lost_tokens)


def _hopeless(promised_bytes: int, most_bytes: int, budget_bytes: int) -> str:
    return (
        f"This turn may need {mib(promised_bytes)} of memory; of the {mib(budget_bytes)} budget, "
        f"{mib(max(0, most_bytes))} are not pinned or guaranteed to other users. Lower the limit of new tokens, start "
        "a new conversation, or start the server with a larger --device-kv-budget."
    )
