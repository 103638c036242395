"""The thread that turns the engine's events into what subscribers see and what the database keeps.

The engine's listeners only put events into this queue, so neither SQLite nor a slow subscriber ever holds up a decode
step. One run's error fails that run with a sentence; the thread goes on.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import time

from model_runtime.interface.chat import TurnTemplate
from model_runtime.interface.events import Event, Finished, FinishReason, PrefillProgress, TokenDelta
from model_runtime.interface.protocol import Engine
from sessions.errors import SessionError, StoreError
from sessions.ledger import history_hash
from sessions.memory.memory import Memory
from sessions.memory.memory_records import Lease
from sessions.store.store import Store
from sessions.turns.one_call import end_after_first_call
from sessions.turns.receipt import engine_receipt, outcome, receipt, with_branch
from sessions.turns.run import Run, RunTable
from sessions.turns.unstored_answers import AnswerEnd, UnstoredAnswers
from sessions.types import MessageStatus, MessageView, Receipt
from sessions.worker import Worker

log = logging.getLogger(__name__)

CHECKPOINT_PATIENCE_S = 0.2  # for another program that has the database locked; every stream waits as long


class Recorder:
    """Writes down what the engine says about every run. What cannot be stored at the end of an answer is in `kept`.

    `put` may be called from any thread and never blocks.
    """

    def __init__(
        self,
        store: Store,
        engine: Engine,
        template: TurnTemplate,
        runs: RunTable,
        memory: Memory,
        checkpoint_interval_s: float,
    ) -> None:
        self._store = store
        self._engine = engine
        self._template = template
        self._runs = runs
        self._memory = memory
        self._checkpoint_interval_s = checkpoint_interval_s
        self.kept = UnstoredAnswers(store.messages)
        self._queue: queue.SimpleQueue[tuple[Run, Event] | None] = queue.SimpleQueue()
        self._worker = Worker("recorder", self._loop)

    def start(self) -> None:
        self._worker.start()

    def put(self, run: Run, event: Event) -> None:
        self._queue.put((run, event))

    def close(self, timeout_s: float) -> None:
        """Handles what is in the queue, then ends."""
        self._queue.put(None)
        self._worker.close(timeout_s)

    def _loop(self) -> None:
        next_checkpoint = time.monotonic() + self._checkpoint_interval_s
        while True:
            if (left_s := next_checkpoint - time.monotonic()) <= 0:
                self._checkpoint_all()
                next_checkpoint = time.monotonic() + self._checkpoint_interval_s
                continue
            try:
                item = self._queue.get(timeout=left_s)
            except queue.Empty:
                continue
            if item is None:
                return
            self._handle(*item)

    def _handle(self, run: Run, event: Event) -> None:
        if run.is_done:  # it was given up while the engine was still working on it
            return
        try:
            match event:
                case PrefillProgress():
                    run.read(event)
                    self._note_read(run, event.total_tokens - event.fed_tokens)
                case TokenDelta():
                    run.sample(event)
                    self._note_gap(run)
                case Finished():
                    self._finish(run, event)
        except Exception:
            log.exception("recording_failed message=%d event=%s", run.message_id, type(event).__name__)
            self._fail(run, event)

    def _note_read(self, run: Run, unread_tokens: int) -> None:
        """Others may wait for that much of what it reads."""
        tokens = len(run.plan.turn.ledger) - unread_tokens
        if run.lease is not None:
            self._memory.held.has_read(run.lease, tokens)
        if run.reading is not None:
            self._memory.readings.read(run.reading, tokens)

    def _note_gap(self, run: Run) -> None:
        now = time.monotonic()
        if run.last_token_at is not None:
            self._memory.counters.token_after(now - run.last_token_at)
        run.last_token_at = now

    def _checkpoint_all(self) -> None:
        for run in self._runs.all_active():
            if len(run.sampled) == run.checkpointed_tokens:
                continue
            try:
                text, ids = run.snapshot().text, run.node_ids
                self._store.messages.checkpoint(run.message_id, text, ids, CHECKPOINT_PATIENCE_S)
                run.checkpointed_tokens = len(run.sampled)
            except StoreError as error:  # the next one, or the end of the answer, will keep it
                log.warning("checkpoint_failed message=%d error=%s", run.message_id, error)
                return  # nor will the others be stored, and each would take its time
            except Exception:
                log.exception("checkpoint_failed message=%d", run.message_id)

    def _finish(self, run: Run, event: Finished) -> None:
        status, note = outcome(run, event, self._engine.info.context_limit_tokens)
        cost = receipt if self._engine.info.keeps_kv else engine_receipt
        stored = cost(run, event, self._engine.estimate_read_s)
        stored = with_branch(stored, run, self._template) if stored is not None else None
        text, run.finish_reason = end_after_first_call(run, run.complete(event), event.reason, self._template)
        end = AnswerEnd(
            text,
            tuple(run.node_ids),
            status,
            run.finish_reason,
            note,
            stored,
            self._history_hash(run, text),
            self._memory.unsaved_cause,
        )
        try:
            message = self.kept.store(run, end)
        except SessionError as error:
            log.error("answer_not_stored message=%d", run.message_id)
            message = _unsaved(run, text, f"This answer could not be stored. {error}")
        self._end_run(run, message)
        if stored is not None:
            self._note_report(run, stored)
            self._memory.log.receipt(run.plan.owner_id, run.conversation_id, stored)

    def _note_report(self, run: Run, stored: Receipt) -> None:
        """What a remote engine said that it still had."""
        if not self._engine.info.keeps_kv and stored.is_reuse_reported and stored.sampled_tokens:
            kept_tokens = stored.fed_tokens + stored.reused_tokens - stored.delta_tokens
            self._memory.engine_hits.reported(run.conversation_id, kept_tokens, stored.reused_tokens)

    def _history_hash(self, run: Run, text: str) -> str:
        """By which a request that sends this answer back is recognised; "" if what it answers has none."""
        if not run.plan.history_hash:
            return ""
        plan = run.plan
        if plan.raw is not None:
            ids = run.node_ids[:-1] if run.finish_reason is FinishReason.STOP else run.node_ids
            return plan.raw.answered(text, ids)
        answer = history_hash.answer_message(
            text, plan.reads_calls, run.call_seed, self._template, plan.is_thought_open
        )
        return history_hash.after(run.plan.history_hash, [answer])

    def _fail(self, run: Run, event: Event) -> None:
        """Our own code raised. The KV is the engine's until its last event, so a run that is still going is stopped."""
        if run.is_done:
            return
        run.failure = "Something went wrong while this answer was recorded. Regenerate it to try again."
        if not isinstance(event, Finished):
            run.ask_to_stop()
            return
        text = run.snapshot().text
        with contextlib.suppress(Exception):  # whatever it is, the run ends and the thread goes on
            self._store.messages.finish_answer(
                run.message_id, text, run.node_ids, MessageStatus.FAILED, FinishReason.FAILED, run.failure, None
            )
        self._end_run(run, _unsaved(run, text, run.failure))

    def _end_run(self, run: Run, message: MessageView) -> None:
        """The order matters: a client that sees DONE may send at once and must find the KV and the conversation
        free."""
        if run.lease is not None:
            try:
                self._give_back(run, run.lease)
            except Exception:
                log.exception("lease_not_settled message=%d", run.message_id)
        if run.reading is not None:
            self._memory.readings.ended(run.reading)
        self._runs.retire(run)
        run.finish(message)

    def _give_back(self, run: Run, lease: Lease) -> None:
        turn = run.plan.turn
        prompt_tokens = len(turn.ledger) - turn.answer_prefix_tokens
        lender_id = run.restored.shared.conversation_id if run.restored.shared else ""
        ids = (*turn.ledger, *run.sampled)
        plan = run.plan
        self._memory.save(lease, plan.owner_id, ids, prompt_tokens, run.message_id, lender_id, plan.is_fork)


def _unsaved(run: Run, text: str, note: str) -> MessageView:
    return MessageView(
        message_id=run.message_id,
        role="assistant",
        text=text,
        status=MessageStatus.FAILED,
        sibling_number=1,
        sibling_count=1,
        note=note,
    )
