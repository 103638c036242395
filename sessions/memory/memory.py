"""Where KVs go when they leave the device, and how they come back: the seam between runs and the lower tiers.

After a turn its new rows are written through to disk in the background, so evicting is a drop; where there is a host
tier, a KV that is evicted is copied there first. Before a turn whose KV lacks what a saved one has, the saved one is
restored if that is expected to beat reading.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from model_runtime.interface.errors import SegmentNotSaved
from model_runtime.interface.protocol import Engine
from sessions.config import SessionConfig
from sessions.ledger.ledger import common_prefix
from sessions.memory.device.leases import Leases
from sessions.memory.device.slots import DeviceSlot
from sessions.memory.log import MemoryLog
from sessions.memory.moves.park import Parking
from sessions.memory.moves.prefetch import Prefetcher
from sessions.memory.moves.restore import Restored, Restorer, RestoreRequest, Urgency
from sessions.memory.moves.save import SaveJob, Writer
from sessions.memory.moves.saving import Saving
from sessions.memory.saved.chains import BEGINNING_TOKENS
from sessions.memory.saved.disk import Disk
from sessions.memory.saved.host import Host
from sessions.memory.saved.saved_kvs import SavedKVs
from sessions.memory.usage import UsageHistory
from sessions.store.store import Store
from sessions.store.tables.losses import Cause, SavedLoss
from sessions.store.tables.segments import Saved
from sessions.turns.run import Run, RunTable
from sessions.types import Tier, Usage

log = logging.getLogger(__name__)


class Memory:
    """Any thread but the engine's. Without a budget for any lower tier every method is a cheap no. To the leases it is
    where KVs go (`device.slots.EvictionTarget`). `parking` takes a KV down and `prefetcher` brings one back without a
    run."""

    def __init__(
        self, store: Store, engine: Engine, leases: Leases, runs: RunTable, memory_log: MemoryLog, config: SessionConfig
    ) -> None:
        self._store = store
        self._engine = engine
        self._leases = leases
        self._memory_log = memory_log
        self._config = config
        self._disk = Disk(
            store,
            engine,
            config,
            lambda: {*runs.active_by_conversation(), *leases.pins.conversations()},
            memory_log.written,
        )
        store.messages.unsaved_cause = Cause.UNSAVED if self._disk.budget_bytes else Cause.DISK_OFF
        self._host = Host(config.host_kv_budget_bytes, self._disk.recover_s)
        self._saved_kvs = SavedKVs(engine, self._host, self._disk)
        self._writer = Writer(engine, self._saved_kvs, memory_log.not_saved)
        self._restorer = Restorer(engine, self._saved_kvs)
        self.parking = Parking(engine, leases, self._saved_kvs, self._writer)
        self.prefetcher = Prefetcher(engine, leases, self._saved_kvs, self._restorer, self._restore)
        leases.eviction_target = self
        self.history = UsageHistory(self._usage, config.usage_interval_s)

    def start(self, say: Callable[[str], None]) -> None:
        """Sweeps the disk, then takes work. `say` tells a person of what is saved and what has to go."""
        try:
            self._disk.sweep(say)
        except (SegmentNotSaved, OSError):  # a folder that cannot be used: nothing is saved, and the chat goes on
            log.exception("kv_sweep_failed")
        self._writer.start()
        self._restorer.start()
        self.history.start()

    def close(self) -> None:
        """Restores nothing more, and saves what is still to be saved as far as the configured time goes."""
        self.history.close(timeout_s=1.0)
        self._restorer.close(timeout_s=self._config.close_timeout_s)
        self._writer.close(self._config.flush_timeout_s)

    @property
    def saved_kvs(self) -> SavedKVs:
        """Everything that is saved off the device."""
        return self._saved_kvs

    @property
    def is_on(self) -> bool:
        return self._saved_kvs.is_on

    @property
    def host(self) -> Host:
        """The host tier, for its numbers."""
        return self._host

    @property
    def disk_budget_bytes(self) -> int:
        return self._disk.budget_bytes

    @property
    def disk_used_bytes(self) -> int:
        return self._disk.used_bytes

    @property
    def disk_other_bytes(self) -> int:
        return self._disk.other_bytes

    def loss(self, conversation_id: str) -> SavedLoss | None:
        """What is known of a conversation whose next turn does not find all that it saved."""
        return self._disk.loss(conversation_id)

    def saved(self, owner_id: str) -> dict[str, Saved]:
        """What the owner's conversations have on disk."""
        return self._disk.by_conversation(owner_id)

    def restored_ttft_s(self, saved_tokens: int, expected_tokens: int, tier: Tier) -> float:
        """What a turn is expected to take when `saved_tokens` come from that tier and the rest is read."""
        speed = self._saved_kvs.host_speed if tier is Tier.HOST else self._saved_kvs.disk_speed
        restore_s = speed.estimate_s(self._engine.segment_bytes(saved_tokens), 1)
        return restore_s + self._engine.estimate_read_s(saved_tokens, expected_tokens)

    def before_run(self, run: Run, shared_tokens: int, feed: Callable[[], None], give_up: Callable[[], None]) -> None:
        """Calls `feed` once the run's leased KV holds the best it can, or `give_up` when the run was stopped before.
        `shared_tokens` of its ledger another KV on the device begins with."""
        lease, turn = run.lease, run.plan.turn
        assert lease is not None, "a run without its lease"
        useful_tokens = common_prefix(lease.held_ids, turn.ledger[:-1])
        warm_tokens = len(turn.ledger) - turn.delta_tokens
        may_borrow = useful_tokens == 0 and len(turn.ledger) - shared_tokens > BEGINNING_TOKENS
        has_all = useful_tokens >= warm_tokens and not may_borrow
        if not self.is_on or has_all or len(lease.held_ids) != lease.held_tokens:
            feed()
            return
        request = RestoreRequest(
            owner_id=run.plan.owner_id,
            conversation_id=run.conversation_id,
            kv=lease.kv,
            ledger=turn.ledger,
            useful_tokens=useful_tokens,
            promised_bytes=lease.promised_bytes,
            must_stop=lambda: run.stop_asked,
            shared_tokens=shared_tokens,
        )

        def restore_and_feed() -> None:
            run.restored = self._restore(request)
            (give_up if run.stop_asked else feed)()

        self._restorer.put(Urgency.TURN, restore_and_feed)

    def after_run(self, run: Run) -> None:
        """Gives the KV back, and has its new rows written through."""
        lease = run.lease
        assert lease is not None, "a run without its lease"
        ids = (*run.plan.turn.ledger, *run.sampled)[: lease.kv.length_tokens]
        if not self._disk.budget_bytes or not ids:
            self._leases.settle(lease, ids)
            return
        self._leases.settle(lease, ids, self._config.save_patience_s)
        saving = Saving(run, lease.kv, ids, self._leases, self._saved_kvs, self._memory_log)
        self._writer.put(
            SaveJob(
                owner_id=run.plan.owner_id,
                conversation_id=run.conversation_id,
                kv=lease.kv,
                ids=ids,
                prompt_tokens=len(run.plan.turn.ledger) - run.plan.turn.answer_prefix_tokens,
                staged=saving.staged,
                done=saving.done,
                message_id=run.message_id,
            )
        )

    def leaving(self, slot: DeviceSlot) -> Tier:
        """Copies an idle KV that is about to be freed into host memory, if it fits; else what is on disk is left."""
        ids = slot.held_ids
        is_known = bool(ids) and len(ids) == slot.kv.length_tokens
        if self._host.budget_bytes and is_known:
            if self._saved_kvs.take(slot.owner_id, slot.conversation_id, slot.kv, ids):
                return Tier.HOST
            log.info("kv_does_not_fit_host conversation=%s", slot.conversation_id)
        return Tier.DISK if slot.saved_tokens else Tier.NONE

    def lost_s(self, slot: DeviceSlot) -> float:
        """How much longer the next turn would take without this KV: restoring it, or reading it again."""
        tokens = slot.kv.length_tokens
        read_s = self._engine.estimate_read_s(0, tokens)
        if self._host.budget_bytes:
            return min(read_s, self.restored_ttft_s(tokens, tokens, Tier.HOST))
        if slot.saved_tokens:
            return min(read_s, self.restored_ttft_s(min(tokens, slot.saved_tokens), tokens, Tier.DISK))
        return read_s

    def forget(self, conversation_id: str) -> None:
        """Deletes what is left of a conversation that was deleted."""
        self._host.release(conversation_id)
        self._disk.collect()

    def drop(self, conversation_id: str) -> int:
        """Deletes what is saved of an idle conversation; returns the bytes that went."""
        return self._host.release(conversation_id) + self._disk.drop(conversation_id)

    def _restore(self, request: RestoreRequest) -> Restored:
        """Never raises: whatever goes wrong, the turn reads what is missing."""
        restored = Restored()
        try:
            restored = self._restorer.restore(request)
            if restored.tier is Tier.DISK and not restored.lender_id:
                self._leases.saved(request.conversation_id, request.kv, request.ledger[: restored.tokens])
            self._memory_log.restored(request.owner_id, request.conversation_id, restored)
        except Exception:
            log.exception("kv_not_restored conversation=%s", request.conversation_id)
        return restored

    def _usage(self) -> Usage:
        """What every tier holds now."""
        device_bytes = sum(holding.used_bytes for holding in self._leases.holdings().values())
        return Usage(time.time(), device_bytes, self._host.used_bytes, self._disk.used_bytes)
