"""The memory of all conversations: each KV's life on the device, in host memory and on disk.

After a turn its new rows are written through to disk in the background, so evicting is a drop; where there is a host
tier, a KV that is evicted is copied there first. Before a turn whose KV lacks what a saved one has, the saved one is
restored if that is expected to beat reading.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from model_runtime.interface.errors import SegmentNotSaved
from model_runtime.interface.protocol import Engine
from sessions.config import SessionConfig
from sessions.counters import Counters
from sessions.ledger.ledger import Turn, common_prefix
from sessions.memory.device.held_kvs import HeldKVs
from sessions.memory.device.leases import Leases
from sessions.memory.device.pins import Pins
from sessions.memory.device.readings import Reading, Readings
from sessions.memory.device.shared_prefixes import SharedPrefixes
from sessions.memory.device.slots import Ticket
from sessions.memory.engine_hits import EngineHits
from sessions.memory.events import EventLog
from sessions.memory.log import MemoryLog
from sessions.memory.memory_records import NOT_RESTORED, Holding, Lease, Restored, RestoreRequest, SharedPrefix
from sessions.memory.moves.evict import LowerTiers
from sessions.memory.moves.park import Parking
from sessions.memory.moves.prefetch import Prefetcher
from sessions.memory.moves.restore import Restorer
from sessions.memory.moves.save import SaveJob, Writer
from sessions.memory.saved.chains import BEGINNING_TOKENS
from sessions.memory.saved.disk import Disk
from sessions.memory.saved.host import Host
from sessions.memory.saved.saved_kvs import SavedKVs
from sessions.memory.usage import UsageHistory
from sessions.store.store import Store
from sessions.store.tables.losses import Cause, SavedLoss
from sessions.store.tables.segments import Saved, all_of
from sessions.types import BranchMemory, Tier, Usage

log = logging.getLogger(__name__)


class RunsInProgress(Protocol):
    """What the memory asks about the turns; `sessions.turns.run.RunTable` answers."""

    def is_busy(self, conversation_id: str) -> bool:
        """Whether a turn is under way in the conversation, or another change of it."""

    def active_by_conversation(self) -> Mapping[str, object]:
        """The conversations with a run."""


class Memory:
    """Everything that a turn, a person or a view wants of KVs. Any thread but the engine's.

    `held` has what is on the device, `leases` the queue for it, `saved_kvs` what is elsewhere. Without a budget for any
    lower tier, saving and restoring cost nothing and do nothing."""

    def __init__(self, store: Store, engine: Engine, config: SessionConfig, runs: RunsInProgress) -> None:
        self._engine = engine
        self._config = config
        self.counters = Counters()
        self.events = EventLog(config.event_log_length)
        self.log = MemoryLog(store, self.events, self.counters)
        self.pins = Pins(engine, config.device_kv_budget_bytes, runs.is_busy)
        self._disk = Disk(
            store,
            engine,
            config,
            lambda: {*runs.active_by_conversation(), *self.pins.conversations()},
            self.log.written,
        )
        self._host = Host(config.host_kv_budget_bytes, self._disk.recover_s)
        self.saved_kvs = SavedKVs(engine, self._host, self._disk)
        self._lower_tiers = LowerTiers(engine, self.saved_kvs)
        self.held = HeldKVs(engine, config.device_kv_budget_bytes, self.pins)
        self.leases = Leases(self.held, self.log.dropped_for_room, self._lower_tiers)
        self.shared_prefixes = SharedPrefixes(engine, self.held)
        self.readings = Readings(engine.info.keeps_kv)
        self._writer = Writer(engine, self.saved_kvs, self.held, self.log)
        self._restorer = Restorer(engine, self.saved_kvs, self.held, self.log)
        self._parking = Parking(engine, self.leases, self.saved_kvs, self._writer)
        self.prefetcher = Prefetcher(engine, self.held, self.saved_kvs, self._restorer)
        self.engine_hits = EngineHits()
        self.usage = UsageHistory(self._usage_now, config.usage_interval_s)
        engine.give_memory_back_with(self.leases.take_idle)

    # Life

    def start(self, say: Callable[[str], None]) -> None:
        """Sweeps the disk, then takes work. `say` tells a person of what is saved and what has to go."""
        try:
            self._disk.sweep(say)
        except (SegmentNotSaved, OSError):  # a folder that cannot be used: nothing is saved, and the chat goes on
            log.exception("kv_sweep_failed")
        self._writer.start()
        self._restorer.start()
        self.usage.start()
        self.leases.start()

    def close(self) -> None:
        """Restores nothing more, and saves what is still to be saved within the configured time."""
        self.usage.close(timeout_s=1.0)
        self._restorer.close(timeout_s=self._config.close_timeout_s)
        self._writer.close(self._config.flush_timeout_s)
        self.leases.close(timeout_s=1.0)

    # A turn

    def admit(self, owner_id: str, conversation_id: str, promised_bytes: int) -> None:
        """Raises `CacheFull` with the numbers for a turn that could never be granted its bytes."""
        self.leases.refuse_beyond_shares(owner_id, conversation_id, promised_bytes)
        self.pins.admit(conversation_id, promised_bytes)

    def room_bytes(self, owner_id: str, conversation_id: str) -> int:
        """The most that `admit` admits now."""
        return min(self.leases.most_bytes(owner_id, conversation_id), self.pins.room_bytes(conversation_id))

    def announce(self, owner_id: str, conversation_id: str, turn: Turn) -> Reading:
        """A turn is about to read its ledger. `readings.ended` must follow."""
        is_long = self._engine.info.is_long_rope(len(turn.ledger))
        return self.readings.announce(owner_id, conversation_id, turn.ledger, is_long)

    def must_wait(self, reading: Reading) -> bool:
        """Whether the beginning of a turn is being read for another turn of its owner: then `wait_for_beginning` comes
        before `enter`."""
        if not self.readings.must_wait(reading, held_tokens=0):  # seldom, and cheaper than to look what is held
            return False
        return self.readings.must_wait(reading, self._beginning_tokens(reading))

    def wait_for_beginning(self, reading: Reading, must_stop: Callable[[], bool]) -> float:
        """Waits for what other turns of the owner are reading of this one's beginning; returns the seconds."""
        return self.readings.wait(reading, lambda: self._beginning_tokens(reading), must_stop)

    def _beginning_tokens(self, reading: Reading) -> int:
        """How much of what it is going to read is on the device: in its own KV, or to be copied from another."""
        ids, conversation_id = reading.ids[:-1], reading.conversation_id
        own_tokens = common_prefix(self.held.held_ids(conversation_id), ids)
        owner_id, is_long = reading.owner_id, reading.is_long_rope
        return max(own_tokens, self.shared_prefixes.held_tokens(owner_id, conversation_id, ids, is_long))

    def enter(self, ticket: Ticket) -> None:
        """Joins the queue for a lease; `ticket.wait` returns it."""
        self.leases.enter(ticket)

    def leave(self, ticket: Ticket) -> None:
        """A ticket that still waits is withdrawn."""
        self.leases.leave(ticket)

    @property
    def unsaved_cause(self) -> Cause:
        """Why a turn's rows are not on disk when it ends; what saves them corrects it."""
        return Cause.UNSAVED if self._disk.budget_bytes else Cause.DISK_OFF

    def loss(self, conversation_id: str) -> SavedLoss | None:
        """What is known of a conversation whose next turn does not find all that it saved."""
        return self._disk.loss(conversation_id)

    def restore(self, lease: Lease, owner_id: str, turn: Turn, must_stop: Callable[[], bool]) -> Restored:
        """Brings the best there is into a leased KV before its turn: what is saved, else the beginning of another
        conversation on the device. Waits for both. Never raises: what could not be brought is read."""
        conversation_id, ids = lease.conversation_id, turn.ledger[:-1]
        is_long = self._engine.info.is_long_rope(len(turn.ledger))
        held_ids = lease.held_ids if lease.kv.is_long_rope is is_long else ()  # the engine drops other rows
        is_rope_changed = self._is_rope_changed(lease, owner_id, turn)
        shared_tokens = self.shared_prefixes.held_tokens(owner_id, conversation_id, ids, is_long)
        restored = NOT_RESTORED
        if self._can_gain(lease, turn, common_prefix(held_ids, ids), shared_tokens):
            request = RestoreRequest(
                owner_id=owner_id,
                conversation_id=conversation_id,
                kv=lease.kv,
                ledger=turn.ledger,
                useful_tokens=common_prefix(held_ids, ids),
                promised_bytes=lease.promised_bytes,
                must_stop=must_stop,
                shared_tokens=shared_tokens,
            )
            restored = self._restorer.restore_for_turn(request)
        if must_stop():
            return restored
        known_tokens = restored.tokens or common_prefix(held_ids, turn.ledger)
        known_tokens = self.shared_prefixes.copy(owner_id, conversation_id, lease.kv, ids, known_tokens, is_long)
        shared = self.shared_prefixes.take_copied(conversation_id, lease.kv)
        if shared is None and restored.lender_id:
            shared = SharedPrefix(restored.lender_id, 0, restored.tokens)
        self.held.reads(lease, turn.ledger, known_tokens)
        return replace(restored, shared=shared, is_rope_changed=is_rope_changed)

    def _is_rope_changed(self, lease: Lease, owner_id: str, turn: Turn) -> bool:
        """Whether what earlier turns kept cannot be used, because a ledger of this length has other rotary
        frequencies: the conversation passes that length now, or what is kept of it comes from beyond."""
        info, ids = self._engine.info, turn.ledger[:-1]
        warm_tokens = len(turn.ledger) - turn.delta_tokens
        if info.short_rope_tokens is None or not warm_tokens:
            return False
        is_long, held_tokens = info.is_long_rope(len(turn.ledger)), common_prefix(lease.held_ids, ids)
        if lease.kv.is_long_rope is is_long and held_tokens >= warm_tokens:
            return False
        if is_long is not info.is_long_rope(warm_tokens) or (lease.kv.is_long_rope is not is_long and held_tokens):
            return True
        other = self.saved_kvs.chain(owner_id, lease.conversation_id, ids, is_long_rope=not is_long)
        return other.useful_tokens >= warm_tokens

    def save(
        self,
        lease: Lease,
        owner_id: str,
        ids: tuple[int, ...],
        prompt_tokens: int,
        message_id: int,
        lender_id: str = "",
        is_fork: bool = False,
    ) -> None:
        """Gives a run's KV back, which holds rows of `ids`, and has the new ones written to disk in the background. Its
        beginning was copied from `lender_id`, "" if from no other conversation; `is_fork` if this turn made it."""
        if not self._engine.info.keeps_kv:
            self.held.settle(lease)  # no ids: what the engine has of them it says with the next answer
            return
        ids = ids[: lease.kv.length_tokens]
        if not self._disk.budget_bytes or not ids:
            self.held.settle(lease, ids, is_fork=is_fork)
            return
        kv, is_long = lease.kv, lease.kv.is_long_rope  # once it is given back, another turn may change it
        self.held.settle(lease, ids, self._config.save_patience_s, is_fork=is_fork)
        self._writer.put(
            SaveJob(owner_id, lease.conversation_id, kv, ids, prompt_tokens, message_id, lender_id, is_long)
        )

    def _can_gain(self, lease: Lease, turn: Turn, useful_tokens: int, shared_tokens: int) -> bool:
        """Whether something that is saved could be of use: the KV lacks rows that earlier turns had, or it is empty
        and much of the ledger would be read."""
        warm_tokens = len(turn.ledger) - turn.delta_tokens
        may_borrow = useful_tokens == 0 and len(turn.ledger) - shared_tokens > BEGINNING_TOKENS
        has_all = useful_tokens >= warm_tokens and not may_borrow
        return self.saved_kvs.is_on and not has_all and len(lease.held_ids) == lease.held_tokens

    # By hand

    def park(self, owner_id: str, conversation_id: str, tier: Tier, timeout_s: float) -> int:
        """Moves an idle conversation's KV down, then frees it; returns the freed bytes. Inside the conversation's
        claim. Raises `StoreError`, and the KV stays, when it cannot be kept there."""
        return self._parking.park(owner_id, conversation_id, tier, timeout_s)

    def drop_saved(self, conversation_id: str) -> int:
        """Deletes what is saved of an idle conversation; returns the bytes that went."""
        return self._host.release(conversation_id) + self._disk.drop(conversation_id)

    def forget(self, conversation_id: str) -> None:
        """Deletes what is left of a conversation that was deleted."""
        self.engine_hits.forget(conversation_id)
        self._host.release(conversation_id)
        self._disk.collect()

    # To be shown

    @property
    def disk_budget_bytes(self) -> int:
        return self._disk.budget_bytes

    @property
    def disk_used_bytes(self) -> int:
        return self._disk.used_bytes

    @property
    def disk_other_bytes(self) -> int:
        """What other models and settings saved."""
        return self._disk.other_bytes

    @property
    def host(self) -> Host:
        """The host tier, for its numbers."""
        return self._host

    def holdings(self) -> dict[str, Holding]:
        """What is on the device, by conversation; everyone's."""
        return self.held.holdings()

    def saved(self, owner_id: str) -> dict[str, Saved]:
        """What the owner's conversations have on disk."""
        return self._disk.by_conversation(owner_id)

    def saved_of(self, conversation_id: str) -> tuple[Saved, Saved]:
        """What one conversation has in host memory and on disk. Its owner must have been checked."""
        return all_of(self._host.of_conversation(conversation_id)), all_of(self._disk.of_conversation(conversation_id))

    def of_branch(self, owner_id: str, conversation_id: str, ids: tuple[int, ...]) -> BranchMemory:
        """What each tier holds of the branch of a conversation whose KV has these ids."""
        holding, held = self.holdings().get(conversation_id), self.held.held_ids(conversation_id)
        on_device = common_prefix(held, ids)
        share = on_device / holding.tokens if holding is not None and holding.tokens else 0.0
        return BranchMemory(
            on_device,
            int(holding.used_bytes * min(1.0, share)) if holding is not None else 0,
            *self.saved_kvs.of_branch(owner_id, conversation_id, ids, Tier.HOST),
            *self.saved_kvs.of_branch(owner_id, conversation_id, ids, Tier.DISK),
        )

    def restored_ttft_s(self, saved_tokens: int, expected_tokens: int, tier: Tier) -> float:
        """What a turn is expected to take when `saved_tokens` come from that tier and the rest is read."""
        return self._lower_tiers.restored_ttft_s(saved_tokens, expected_tokens, tier)

    def _usage_now(self) -> Usage:
        """What every tier holds now."""
        device_bytes = sum(holding.used_bytes for holding in self.holdings().values())
        return Usage(time.time(), device_bytes, self._host.used_bytes, self._disk.used_bytes)
