"""One answer being generated, and the table of all of them. A run outlives the browser tab that asked for it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from model_runtime.interface.events import Finished, FinishReason, PrefillProgress, TokenDelta, TokenLogprobs
from model_runtime.interface.protocol import Generation
from model_runtime.interface.sampling_params import SamplingParams
from sessions.awake import patiently
from sessions.errors import ConversationBusy, ShuttingDown
from sessions.ledger.ledger import Turn
from sessions.ledger.raw_prompt import RawPrompt
from sessions.memory.device.readings import Reading
from sessions.memory.device.slots import Ticket
from sessions.memory.memory_records import NOT_RESTORED, Lease, Restored
from sessions.store.tables.losses import SavedLoss
from sessions.types import MessageView, Parting, RunPhase, RunSnapshot


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What is fixed when a run begins. `text` is what a continued answer already says."""

    conversation_id: str
    owner_id: str
    message_id: int
    turn: Turn
    sampling: SamplingParams
    text: str
    change: str  # a clause: what of the model was changed since the last turn, so that earlier KVs cannot be used
    history_hash: str = ""  # of the history that is answered, "" where it is not known
    reads_calls: bool = False  # tools were offered
    is_thought_open: bool = False  # the prompt had the beginning of a thought
    is_fork: bool = False  # its history was copied from another conversation
    loss: SavedLoss | None = None  # what is known of its saved memory, where that is not all there
    raw: RawPrompt | None = None  # the prompt is no chat
    has_one_call: bool = False  # it ends after its first call
    is_upgrade: bool = False  # `change` is another version of Keepwarm, and nothing else
    affinity: str = ""  # as in `GenerationRequest`
    parting: Parting | None = None  # where its history parts from the one that is kept
    is_resent: bool = False  # the request brought earlier answers
    notes: tuple[str, ...] = ()  # sentences for its client
    outline: tuple[tuple[int, str], ...] = ()  # where each message above begins in the ledger, and its role


class Run:
    """Buffers what the engine says about one answer.

    `snapshot`, `wait` and `ask_to_stop` are for any thread. The turn's thread calls `leased` and `started`; the
    recorder calls everything after that. `promised_bytes` is what its KV may grow to.
    """

    def __init__(self, plan: RunPlan, promised_bytes: int) -> None:
        self.plan = plan
        self.ticket = Ticket(plan.conversation_id, plan.owner_id, promised_bytes, self._moved)
        self.lease: Lease | None = None
        self.reading: Reading | None = None  # what it reads, where others may wait for it
        self.shared_wait_s = 0.0  # of the time it waited: while another turn read its beginning
        self.restored: Restored = NOT_RESTORED
        self.waited_s = 0.0
        self.failure: str | None = None  # a sentence: our own code failed while the engine worked
        self.is_kept = False  # its end could not be stored yet, and is kept in memory
        self.interrupted = False  # the server is ending; no one asked for a stop
        self.stop_asked = False
        self.sampled: list[int] = []
        self.logprobs: list[TokenLogprobs] = []  # of the tokens whose text is shown
        self._held_logprobs: list[TokenLogprobs] = []
        self.checkpointed_tokens = 0
        self.done_at: float | None = None
        self.last_token_at: float | None = None
        self.finish_reason: FinishReason | None = None
        self.stop_string = ""  # the one that ended the answer
        self._created_at = time.monotonic()
        self._generation: Generation | None = None
        self._changed = threading.Condition()
        self._watchers: list[Callable[[], None]] = []
        self._snapshot = RunSnapshot(1, RunPhase.WAITING, plan.text, total_tokens=plan.turn.delta_tokens)

    @property
    def conversation_id(self) -> str:
        return self.plan.conversation_id

    @property
    def message_id(self) -> int:
        return self.plan.message_id

    @property
    def call_seed(self) -> str:
        """What the ids of the answer's calls depend on."""
        return self.plan.history_hash or str(self.message_id)

    @property
    def node_ids(self) -> list[int]:
        """All ids of the answer's node so far."""
        return [*self.plan.turn.answer.token_ids, *self.sampled]

    def snapshot(self) -> RunSnapshot:
        with self._changed:
            return self._snapshot

    def wait(self, after_version: int, timeout_s: float) -> RunSnapshot:
        """Returns as soon as the version is above `after_version`, or when the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._snapshot.version > after_version, timeout_s)
            return self._snapshot

    def watch(self, call: Callable[[], None]) -> Callable[[], None]:
        """Calls `call` at every change, on whatever thread makes it: it must neither block nor call back. The value
        ends that."""
        with self._changed:
            self._watchers.append(call)

        def end() -> None:
            with self._changed:
                self._watchers.remove(call)

        return end

    def ask_to_stop(self) -> None:
        """Returns at once; the engine obeys within one step. A run that still waits for its lease is the caller's to
        withdraw."""
        self.stop_asked = True
        if self._generation is not None:
            self._generation.abort()

    def shares(self) -> None:
        """It waits while another turn reads what it begins with."""
        self._change(is_sharing=True)

    def leased(self, lease: Lease) -> None:
        self.lease = lease
        self.waited_s = time.monotonic() - self._created_at
        self._change(phase=RunPhase.READING, queue_position=0, is_sharing=False)

    def started(self, generation: Generation) -> None:
        self._generation = generation
        if self.stop_asked:  # it was asked for after the lease was granted
            generation.abort()

    def read(self, event: PrefillProgress) -> None:
        self._change(fed_tokens=event.fed_tokens, total_tokens=event.total_tokens)

    def sample(self, event: TokenDelta) -> None:
        self.sampled.append(event.token_id)
        if event.logprobs is not None:
            self._held_logprobs.append(event.logprobs)
        if event.text:
            self._show_logprobs()
        text = self._snapshot.text + event.text
        self._change(phase=RunPhase.ANSWERING, text=text, sampled_tokens=len(self.sampled))

    def complete(self, event: Finished) -> str:
        """The whole answer, with what the engine held back. Its ids lose those of a stop string."""
        self.stop_string = event.stop_string
        if event.cut_tokens:
            self.sampled[-event.cut_tokens :] = event.part_ids
        else:
            self._show_logprobs()
        return self._snapshot.text + event.text_tail

    def keep(self, tokens: int) -> None:
        """The answer ends after that many of its sampled ids."""
        del self.sampled[tokens:]

    def _show_logprobs(self) -> None:
        self.logprobs += self._held_logprobs
        self._held_logprobs.clear()

    def finish(self, message: MessageView) -> None:
        """The last change: the answer as it was committed."""
        self.done_at = time.monotonic()
        self._change(phase=RunPhase.DONE, queue_position=0, text=message.text, message=message)

    @property
    def is_done(self) -> bool:
        return self.done_at is not None

    def _moved(self, place: int) -> None:
        self._change(queue_position=place, is_sharing=False)

    def _change(self, **changes: Any) -> None:
        with self._changed:
            self._snapshot = replace(self._snapshot, version=self._snapshot.version + 1, **changes)
            self._changed.notify_all()
            for call in self._watchers:
                call()


class RunTable:
    """At most one run a conversation. Finished runs are kept for a while for those who subscribe late."""

    def __init__(self, keep_s: float) -> None:
        self._keep_s = keep_s
        self._changed = threading.Condition()
        self._claimed: set[str] = set()
        self._closed = False
        self._active: dict[str, Run] = {}
        self._finished: dict[int, Run] = {}
        self._end_listeners: list[Callable[[Run], None]] = []

    def on_end(self, call: Callable[[Run], None]) -> None:
        """Calls `call` with every run that ends, once its answer is stored and its KV given back, before the
        conversation is free again. It must not block."""
        self._end_listeners.append(call)

    @contextlib.contextmanager
    def claim(self, conversation_id: str, timeout_s: float = 0.0) -> Iterator[None]:
        """Exclusive use of the conversation inside the block. Raises `ConversationBusy` while a run is active or
        another claim is held, after waiting up to `timeout_s` for it to end."""
        with self._changed:
            if self._closed:
                raise ShuttingDown("The server is shutting down. Nothing was changed; try again in a moment.")
            if not patiently(partial(self._changed.wait_for, lambda: self._is_free(conversation_id)), timeout_s):
                raise ConversationBusy(
                    "An answer is being written in this conversation. Stop it or wait for it to end."
                )
            self._claimed.add(conversation_id)
        try:
            yield
        finally:
            with self._changed:
                self._claimed.discard(conversation_id)
                self._changed.notify_all()

    def add(self, run: Run) -> None:
        with self._changed:
            self._active[run.conversation_id] = run

    def retire(self, run: Run) -> None:
        """The conversation is free for the next turn."""
        for call in self._end_listeners:
            call(run)
        now = time.monotonic()
        with self._changed:
            if self._active.get(run.conversation_id) is run:
                del self._active[run.conversation_id]
            self._finished = {
                i: r
                for i, r in self._finished.items()
                if r.is_kept or r.done_at is None or now - r.done_at < self._keep_s
            }
            self._finished[run.message_id] = run
            self._changed.notify_all()

    def close(self) -> None:
        """Refuses every further claim."""
        with self._changed:
            self._closed = True

    @property
    def is_closed(self) -> bool:
        with self._changed:
            return self._closed

    def is_claimed(self, conversation_id: str) -> bool:
        with self._changed:
            return conversation_id in self._claimed

    def is_busy(self, conversation_id: str) -> bool:
        """Whether a change of the conversation or an answer in it is under way."""
        with self._changed:
            return not self._is_free(conversation_id)

    def active(self, conversation_id: str) -> Run | None:
        with self._changed:
            return self._active.get(conversation_id)

    def active_by_conversation(self) -> dict[str, Run]:
        with self._changed:
            return dict(self._active)

    def all_active(self) -> list[Run]:
        with self._changed:
            return list(self._active.values())

    def counts(self) -> tuple[int, int]:
        """(being written, waiting in the queue)."""
        runs = self.all_active()
        waiting = sum(run.snapshot().phase is RunPhase.WAITING for run in runs)
        return len(runs) - waiting, waiting

    def find(self, conversation_id: str, message_id: int) -> Run | None:
        """The run that writes or wrote this answer, if it is still known."""
        with self._changed:
            run = self._finished.get(message_id) or self._active.get(conversation_id)
        return run if run and (run.conversation_id, run.message_id) == (conversation_id, message_id) else None

    def _is_free(self, conversation_id: str) -> bool:
        return conversation_id not in self._active and conversation_id not in self._claimed


def aborted() -> Finished:
    """The end of a run that the engine never had, or does not give back."""
    return Finished(FinishReason.ABORTED, 0, 0, 0, None, 0.0, 0.0)


def failed(sentence: str) -> Finished:
    """The end of a run that could not begin."""
    return Finished(FinishReason.FAILED, 0, 0, 0, None, 0.0, 0.0, error=sentence)
