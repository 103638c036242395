"""The engine's steps: plan, run one packed forward, sample, emit events."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from model_runtime.decoding.lookup import Lookup
from model_runtime.engine.generation import RunningGeneration, sample_together
from model_runtime.engine.inbox import Inbox
from model_runtime.engine.out_of_memory import FreeAndRetry, translated
from model_runtime.engine.scheduler import MIN_CHUNK_TOKENS, Scheduled, Scheduler
from model_runtime.engine.verification import Piece
from model_runtime.engine.work import Work
from model_runtime.forward.attention import StepAborted
from model_runtime.forward.picked_ids import PickedIds
from model_runtime.forward.runtime import DeviceRuntime
from model_runtime.forward.transformers_forward import Feed
from model_runtime.interface.errors import NotNumbers
from model_runtime.interface.events import FinishReason
from model_runtime.read_speed import ReadSpeed

logger = logging.getLogger(__name__)

S = TypeVar("S", bound=Work)


@dataclass(frozen=True, slots=True)
class TokenLimits:
    """Which ids a ledger may contain, how many, which of them end an answer, and how many ids the logits have."""

    stop_token_ids: frozenset[int]
    context_tokens: int
    vocabulary_tokens: int
    sampled_tokens: int


class Steps:
    """The steps of one engine thread on one runtime. An abandoned thread that wakes up again continues with its own
    `Steps` and never touches a newer runtime."""

    def __init__(
        self,
        inbox: Inbox,
        runtime: DeviceRuntime,
        free_and_retry: FreeAndRetry,
        scheduler: Scheduler,
        speed: ReadSpeed,
        lookup: Lookup,
        limits: TokenLimits,
    ) -> None:
        self._inbox = inbox
        self._runtime = runtime
        self._free_and_retry = free_and_retry
        self._scheduler = scheduler
        self._speed = speed
        self._lookup = lookup
        self._limits = limits
        self._is_ahead = self._has_guesses = False

    def begin(self, work: Work) -> None:
        """Adds work to the next step, idle work only while no generation is running. Fails work that cannot be run."""
        if len(work.ledger) > self._limits.context_tokens:
            work.finish(
                FinishReason.FAILED,
                f"This conversation has {len(work.ledger):,} tokens and the model reads at most "
                f"{self._limits.context_tokens:,}. Start a new conversation.",
            )
        elif not all(0 <= token_id < self._limits.vocabulary_tokens for token_id in work.ledger):
            # An id beyond the table kills a CUDA context; on a CPU a negative id would be read as another token's.
            work.finish(FinishReason.FAILED, "This conversation has tokens that the model does not know.")
        elif not work.is_idle:
            assert isinstance(work, RunningGeneration), "only reading is always idle"
            if any(one >= self._limits.sampled_tokens for one in work.request.sampling.named_token_ids):
                work.finish(FinishReason.FAILED, "The request names token ids that the model does not have.")
                return
            self._preempt_idle_work()
            self._give_room(work)
            self._inbox.running.append(work)
        elif self._inbox.running:
            work.finish(FinishReason.PREEMPTED)
        else:
            self._give_room(work)
            self._inbox.idle.append(work)

    def step(self) -> None:
        """Runs one forward for the generations that are due, or for idle work if there are none."""
        inbox = self._inbox
        for work in (*inbox.running, *inbox.idle):
            if work.is_aborted:
                work.finish(FinishReason.ABORTED)
        self._forget_finished()
        if inbox.running:
            self._run(self._drafted(self._scheduler.plan(inbox.running, self._speed.estimate_s)))
        elif inbox.idle:
            self._run(self._drafted(self._scheduler.plan_idle(inbox.idle)), inbox.is_wanted)
        self._forget_finished()

    def record_while_idle(self) -> None:
        """Records graphs that make later steps faster, while there is no work."""
        inbox = self._inbox

        def is_wanted() -> bool:
            return bool(inbox.arrived) or inbox.is_wanted()

        if self._runtime.record_waiting is not None and not (inbox.running or inbox.idle or is_wanted()):
            inbox.begins(0.0)
            with contextlib.suppress(StepAborted):  # the thread was abandoned meanwhile
                self._runtime.record_waiting(is_wanted)

    def in_passing(self, piece: Piece) -> bool:
        """Runs a piece of background work unless a prompt is being read. False: the caller must try again."""
        if any(not s.is_decoding for s in self._inbox.running):
            return False
        try:
            piece(MIN_CHUNK_TOKENS if self._inbox.running else self._scheduler.config.chunk_tokens)
        except StepAborted:
            return False
        return True

    def _give_room(self, work: Work) -> None:
        try:
            self._free_and_retry.once_more(lambda: work.begin(self._limits.context_tokens))
        except torch.OutOfMemoryError as error:
            self._fail(work, error)

    def _preempt_idle_work(self) -> None:
        for work in self._inbox.idle:
            work.finish(FinishReason.PREEMPTED)
        self._forget_finished()

    def _drafted(self, slots: list[Scheduled[S]]) -> list[Scheduled[S]]:
        """The same slots, with prompt lookup's drafts for the decode steps among them. A step that was started early
        has no drafts; if there are drafts now, the next step is not started early, so that it can use them."""
        decoding = [s.sequence for s in slots if isinstance(s.sequence, RunningGeneration) and s.sequence.is_decoding]
        self._lookup.add_drafts(decoding, sum(slot.tokens for slot in slots), self._limits.context_tokens)
        self._has_guesses = any(sequence.has_draft for sequence in decoding)
        if self._is_ahead:
            for sequence in decoding:
                sequence.drop_draft()
        return slots

    def _run(self, slots: list[Scheduled[S]], is_wanted: Callable[[], bool] = lambda: False) -> None:
        feeds = [Feed(s.sequence.slab, s.sequence.next_ids(s.tokens), s.sequence.logit_rows(s.tokens)) for s in slots]
        started = time.perf_counter()
        self._inbox.begins(
            sum(self._speed.estimate_s(s.sequence.kv_tokens, s.sequence.kv_tokens + s.tokens) for s in slots)
        )

        def is_vain() -> bool:
            return self._inbox.is_over or is_wanted() or any(s.sequence.is_aborted for s in slots)

        try:
            logits = self._free_and_retry.once_more(lambda: self._runtime.forward.run(feeds, is_vain))
        except StepAborted:
            return  # aborted work finishes at the next step; the rows of the rest are computed again
        except Exception as error:
            self._run_each_alone(slots, is_wanted, error)
            return
        if self._inbox.is_over:  # the forward hung and the thread was abandoned: drop the result
            return
        self._sample(slots, torch.split(logits, [feed.logit_rows for feed in feeds]), started)

    def _run_each_alone(self, slots: list[Scheduled[S]], is_wanted: Callable[[], bool], error: Exception) -> None:
        """Repeats a failed forward one sequence at a time, so that only the one that caused it fails."""
        if self._inbox.is_over:
            return
        if len(slots) == 1:
            self._fail(slots[0].sequence, error)
        for slot in slots if len(slots) > 1 else ():
            self._run([slot], is_wanted)

    def _sample(self, slots: list[Scheduled[S]], rows: abc.Sequence[torch.Tensor], started: float) -> None:
        is_reading = len(slots) == 1 and not slots[0].sequence.is_decoding
        for slot in slots:
            slot.sequence.fed(slot.tokens)
        sampling = [
            (s.sequence, own) for s, own in zip(slots, rows, strict=True) if isinstance(s.sequence, RunningGeneration)
        ]
        self._is_ahead = False
        sample_together(sampling, self._limits.stop_token_ids, self._limits.context_tokens, self._fail, self._run_ahead)
        if is_reading:  # timed only now, because a GPU has finished computing once a token is known
            end = slots[0].sequence.kv_tokens
            self._speed.observe(end - slots[0].tokens, end, time.perf_counter() - started)

    def _run_ahead(self, sequences: abc.Sequence[RunningGeneration], picked_ids: PickedIds) -> None:
        """Between two decode steps: starts the second one before the host looks at the picked ids, unless all answers
        end."""
        run_ahead = self._runtime.run_ahead
        if run_ahead is None or self._has_guesses or set(self._inbox.running) - set(sequences):
            return
        if all(s.is_decoding for s in sequences) and not all(s.ends_with_next for s in sequences):
            self._is_ahead = run_ahead([sequence.slab for sequence in sequences], picked_ids)

    def _fail(self, work: Work, error: Exception) -> None:
        """Fails one request. What its slab held before the failed forward stays valid."""
        if isinstance(error, NotNumbers):
            logger.error("logits are not numbers kv_tokens=%d", work.kv_tokens)
        else:
            logger.error("forward failed kv_tokens=%d", work.kv_tokens, exc_info=error)
        work.finish(FinishReason.FAILED, str(translated(error)))

    def _forget_finished(self) -> None:
        inbox = self._inbox
        for work in (*inbox.running, *inbox.idle):
            if work.is_finished:
                work.slab.trim()
        inbox.running = [s for s in inbox.running if not s.is_finished]
        inbox.idle = [w for w in inbox.idle if not w.is_finished]
