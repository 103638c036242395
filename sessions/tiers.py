"""Where KVs go when they leave the device, and how they come back: the seam between runs and the disk.

After a turn its new rows are written through to disk in the background, so evicting is a drop. Before a turn whose KV
lacks what a saved one has, the saved one is restored if that is expected to beat reading.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from model_runtime.errors import SnapshotNotSaved
from model_runtime.types import Engine
from sessions.config import SessionConfig
from sessions.disk import Disk
from sessions.errors import StoreError
from sessions.leases import Leases
from sessions.ledger import common_prefix
from sessions.notes import Notes
from sessions.restorer import Restored, Restorer, Urgency, Wish
from sessions.runs import Run, RunTable
from sessions.segments_table import Saved
from sessions.store import Store
from sessions.types import Tier
from sessions.writer import SaveJob, Writer

log = logging.getLogger(__name__)


class Tiers:
    """Any thread but the engine's. With a disk budget of 0 every method is a cheap no."""

    def __init__(
        self, store: Store, engine: Engine, leases: Leases, runs: RunTable, notes: Notes, config: SessionConfig
    ) -> None:
        self._store = store
        self._engine = engine
        self._leases = leases
        self._notes = notes
        self._config = config
        self._disk = Disk(store.segments, store.kv_dir, engine, config, runs.active_by_conversation)
        self._writer = Writer(engine, self._disk, notes.not_saved)
        self._restorer = Restorer(engine, self._disk)
        self._warming: set[str] = set()
        self._warming_lock = threading.Lock()

    def start(self) -> None:
        """Sweeps the disk, then takes work."""
        try:
            self._disk.sweep()
        except (SnapshotNotSaved, OSError):  # a folder that cannot be used: nothing is saved, and the chat goes on
            log.exception("kv_sweep_failed")
        self._writer.start()
        self._restorer.start()

    def close(self) -> None:
        """Restores nothing more, and saves what is still to be saved as far as the configured time goes."""
        self._restorer.close(timeout_s=self._config.close_timeout_s)
        self._writer.close(self._config.flush_timeout_s)

    @property
    def is_on(self) -> bool:
        return self._disk.budget_bytes > 0

    @property
    def disk_budget_bytes(self) -> int:
        return self._disk.budget_bytes

    @property
    def disk_used_bytes(self) -> int:
        return self._disk.used_bytes

    def saved(self, owner_id: str) -> dict[str, Saved]:
        """What the owner's conversations have on disk."""
        return self._store.segments.by_conversation(owner_id)

    def restored_ttft_s(self, saved_tokens: int, expected_tokens: int) -> float:
        """What a turn is expected to take when `saved_tokens` come from disk and the rest is read."""
        restore_s = self._restorer.speed.estimate_s(self._engine.segment_bytes(saved_tokens), 1)
        return restore_s + self._engine.estimate_read_s(saved_tokens, expected_tokens)

    def before_run(self, run: Run, feed: Callable[[], None], give_up: Callable[[], None]) -> None:
        """Calls `feed` once the run's leased KV holds the best it can, or `give_up` when the run was stopped before."""
        lease, turn = run.lease, run.plan.turn
        assert lease is not None, "a run without its lease"
        useful_tokens = common_prefix(lease.held_ids, turn.ledger[:-1])
        warm_tokens = len(turn.ledger) - turn.delta_tokens
        if not self.is_on or useful_tokens >= warm_tokens or len(lease.held_ids) != lease.held_tokens:
            feed()
            return
        wish = Wish(
            owner_id=run.plan.owner_id,
            conversation_id=run.conversation_id,
            kv=lease.kv,
            ledger=turn.ledger,
            useful_tokens=useful_tokens,
            promised_bytes=lease.promised_bytes,
            must_stop=lambda: run.stop_asked,
        )

        def restore_and_feed() -> None:
            run.restored = self._restore(wish)
            (give_up if run.stop_asked else feed)()

        self._restorer.put(Urgency.TURN, restore_and_feed)

    def after_run(self, run: Run) -> None:
        """Gives the KV back, and has its new rows written through."""
        lease = run.lease
        assert lease is not None, "a run without its lease"
        ids = (*run.plan.turn.ledger, *run.sampled)[: lease.kv.length_tokens]
        if not self.is_on or not ids:
            self._leases.settle(lease, ids)
            return
        self._leases.settle(lease, ids, self._config.save_patience_s)
        conversation_id, kv = run.conversation_id, lease.kv
        self._writer.put(
            SaveJob(
                owner_id=run.plan.owner_id,
                conversation_id=conversation_id,
                kv=kv,
                ids=ids,
                prompt_tokens=len(run.plan.turn.ledger) - run.plan.turn.answer_prefix_tokens,
                staged=lambda: self._leases.staged(conversation_id, kv),
            )
        )

    def forget(self) -> None:
        """Deletes the files of conversations that were deleted."""
        self._disk.collect()

    def drop(self, conversation_id: str) -> int:
        """Deletes what is saved of an idle conversation; returns the bytes that went."""
        return self._disk.drop(conversation_id)

    def park(self, owner_id: str, conversation_id: str, tier: Tier, timeout_s: float) -> int:
        """Saves an idle conversation's KV, then frees it; returns the freed bytes. Inside the conversation's claim.
        Raises `StoreError`, and the KV stays, when it cannot be saved."""
        if tier is Tier.HOST:
            raise StoreError("Nothing can be parked in host memory: the host tier is off.")
        if not self.is_on:
            raise StoreError("Nothing can be parked: the disk budget is 0. Start the server with --disk-kv-budget.")
        idle = self._leases.idle(conversation_id)
        if idle is None:
            return 0
        kv, ids = idle
        ended, results = threading.Event(), []

        def done(saved: bool) -> None:
            results.append(saved)
            ended.set()

        self._writer.put(SaveJob(owner_id, conversation_id, kv, ids, len(ids), lambda: None, done))
        if not ended.wait(timeout_s) or not results[0]:
            raise StoreError("This memory could not be saved, so it stays on the device. The events say why.")
        return self._leases.drop(conversation_id)

    def warm(self, owner_id: str, conversation_id: str, ledger: tuple[int, ...]) -> bool:
        """Begins to restore a conversation in whose KV nothing is, if there is free room. False when it does not."""
        if not self.is_on or not ledger or conversation_id not in self.saved(owner_id):
            return False
        with self._warming_lock:
            if conversation_id in self._warming:
                return True
            promised_bytes = self._engine.kv_bytes(len(ledger))
            if not self._leases.has_room(conversation_id, promised_bytes):
                return False
            self._warming.add(conversation_id)
        self._restorer.put(Urgency.AHEAD, lambda: self._warm(owner_id, conversation_id, ledger, promised_bytes))
        return True

    def _warm(self, owner_id: str, conversation_id: str, ledger: tuple[int, ...], promised_bytes: int) -> None:
        with self._warming_lock:
            self._warming.discard(conversation_id)
        lease = self._leases.reserve(conversation_id, owner_id, promised_bytes)
        if lease is None:
            return
        restored = Restored()
        try:
            restored = self._restore(
                Wish(
                    owner_id=owner_id,
                    conversation_id=conversation_id,
                    kv=lease.kv,
                    ledger=ledger,
                    useful_tokens=0,
                    promised_bytes=promised_bytes,
                    must_stop=lambda: self._leases.must_yield(lease),
                )
            )
        finally:
            # What it holds of other branches' ends is cropped by the next turn; these ids are the useful ones.
            self._leases.settle(lease, ledger[: restored.tokens])

    def _restore(self, wish: Wish) -> Restored:
        """Never raises: whatever goes wrong, the turn reads what is missing."""
        restored = Restored()
        try:
            restored = self._restorer.restore(wish)
            self._notes.restored(wish.owner_id, wish.conversation_id, restored)
        except Exception:
            log.exception("kv_not_restored conversation=%s", wish.conversation_id)
        return restored
