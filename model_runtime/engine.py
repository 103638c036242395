"""The engine: one thread that owns every KV and runs packed forwards, step by step."""

from __future__ import annotations

import logging
import threading
import time
from collections import abc
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from model_runtime import types
from model_runtime.attention import StepAborted
from model_runtime.cold_drift import measure_drift
from model_runtime.cold_rows import ColdRows
from model_runtime.config import EngineConfig
from model_runtime.errors import EngineClosed
from model_runtime.failures import translated
from model_runtime.forward import Feed
from model_runtime.kernels.device import open_runtime
from model_runtime.kv_cache import KVSlab, own_slab
from model_runtime.loaded import LoadedModel, model_info
from model_runtime.lookup import Lookup
from model_runtime.probe import probe_packing
from model_runtime.read_speed import ReadSpeed, measure_reading
from model_runtime.reading import Reading
from model_runtime.relief import Relief
from model_runtime.scheduler import MIN_CHUNK_TOKENS, Scheduler, SchedulerConfig, Slot
from model_runtime.segments import SegmentIdentity
from model_runtime.sequence import Sequence, sample_together
from model_runtime.types import KV, FinishReason, GenerationRequest, Listener, ModelInfo, ReadRequest
from model_runtime.verdict import Verification
from model_runtime.verification import ROUNDED, Piece, Reread, compare_all, tolerance_of

logger = logging.getLogger(__name__)

T = TypeVar("T")
Work = Sequence | Reading
S = TypeVar("S", bound=Work)
_CLOSED = "The model was unloaded; start the server again."


class Engine:
    """Implements `model_runtime.types.Engine` for a loaded model.

    A step is: take what was asked, plan, run one packed forward, sample, emit events. An exception in a forward costs
    the request that caused it, nobody else's. Idle work runs while there is no request, and ends when one comes. Raises
    `ModelLoadError` when the model cannot be packed.
    """

    def __init__(self, loaded: LoadedModel, config: EngineConfig, context_limit_tokens: int) -> None:
        self._config = config
        self._stop_token_ids = loaded.stop_token_ids
        self._geometry = probe_packing(
            loaded.model, loaded.kv_dtype, context_limit_tokens, step_tokens=config.kv_step_tokens
        )
        runtime = open_runtime(loaded.model, self._geometry, config, context_limit_tokens)
        self._runtime = runtime
        self._place, self._forward, self._transfers = runtime.place, runtime.forward, runtime.transfers
        self._tolerance = ROUNDED if config.cold_kv_dtype == "int8" else tolerance_of(loaded.model)
        self._tokenizer = loaded.tokenizer.backend_tokenizer
        memory = runtime.host_pool.take if runtime.host_pool else None
        self._rows = ColdRows(self._geometry, config.cold_kv_dtype, memory)
        self.on_memory_pressure: Callable[[], abc.Sequence[KV]] = tuple
        self._relief = Relief(lambda: self.on_memory_pressure())
        self._scheduler = Scheduler(SchedulerConfig(config.prefill_chunk_tokens, config.idle_chunk_tokens))
        self._speed = ReadSpeed(config.prefill_chunk_tokens)
        self._lookup = Lookup(config.prompt_lookup)
        drift = measure_drift(self._forward, self._place, self._rows, self._tokenizer, context_limit_tokens)
        self._info = model_info(loaded, runtime.kernel, self._rows, context_limit_tokens, drift, self._lookup.notes)
        self._wake = threading.Condition()
        self._arrived: list[Work] = []
        self._calls: list[Callable[[], None]] = []
        self._is_closing = False
        self._running: list[Sequence] = []
        self._idle: list[Work] = []
        measure_reading(self._forward, self._place, context_limit_tokens, self._speed)
        self._lookup.measure(self._forward, self._place)
        self._thread = threading.Thread(target=self._loop, name="keepwarm-engine", daemon=True)
        self._thread.start()

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def max_concurrent(self) -> int:
        return self._config.max_concurrent

    def new_kv(self) -> KVSlab:
        """An empty KV that holds no bytes yet."""
        return self._place.new_kv()

    def kv_bytes(self, tokens: int) -> int:
        """The most bytes a KV of up to `tokens` tokens holds at any moment."""
        return self._place.bytes_for(tokens)

    def estimate_read_s(self, start_tokens: int, end_tokens: int) -> float:
        """Expected seconds to feed positions `start..end`, from what this machine did so far."""
        return self._speed.estimate_s(start_tokens, end_tokens)

    def submit(self, request: GenerationRequest, listener: Listener) -> Sequence:
        """Queues a generation; every failure comes as a `Finished` event on the engine thread."""
        return self._queued(Sequence(request, own_slab(request.kv), listener, self._tokenizer))

    def read(self, request: ReadRequest, listener: Listener) -> Reading:
        """Queues idle reading; every failure comes as a `Finished` event on the engine thread."""
        return self._queued(Reading(request, own_slab(request.kv), listener))

    def _queued(self, work: S) -> S:
        with self._wake:
            if not self._is_closing:
                self._arrived.append(work)
                self._wake.notify()
                return work
        work.finish(FinishReason.FAILED, _CLOSED)
        return work

    def release(self, kv: KV) -> None:
        """Frees the slab on the engine thread; waits for the running step."""
        slab = own_slab(kv)
        try:
            self._between_steps(slab.free)
        except EngineClosed:
            self._join()
            slab.free()

    def stage(self, kv: KV, identity: SegmentIdentity, before: abc.Sequence[int] | None = None) -> types.Segment:
        """A copy of these rows, made by the engine thread between two steps."""
        slab = own_slab(kv)
        return self._rows.packed(self._between_steps(lambda: self._transfers.begin_out(slab, identity, before))())

    def restore(self, kv: KV, segments: abc.Sequence[types.Segment]) -> None:
        """Appends segments to the slab, one between two steps each, so that running answers go on meanwhile."""
        slab = own_slab(kv)
        for segment in segments:
            copy = partial(self._transfers.copy_in, slab, self._rows.unpacked(segment))
            try:
                self._between_steps(partial(self._relief.once_more, copy))
            except (torch.OutOfMemoryError, RuntimeError) as error:
                raise translated(error) from error

    def save(self, segment: types.Segment, path: Path) -> int:
        """Writes the file so that it is whole or absent; returns its bytes."""
        return self._rows.save(segment, path)

    def load(self, identity: SegmentIdentity, path: Path) -> types.Segment:
        """The segment in the file, verified."""
        return self._rows.load(identity, path)

    def verify(
        self,
        scratch: KV,
        ledger: abc.Sequence[int],
        copies: abc.Sequence[KV | abc.Iterable[types.Segment]],
        must_stop: Callable[[], bool],
    ) -> Verification | None:
        """Compares kept rows with those of a re-read, in pieces between steps."""
        reread = Reread(self._forward, own_slab(scratch), ledger, self._tolerance, lambda: bool(self._arrived))
        exact = [c if isinstance(c, KVSlab) else map(self._rows.unpacked, c) for c in copies]  # type: ignore[arg-type]
        return compare_all(
            reread, self._geometry, exact, lambda p: self._between_steps(partial(self._in_passing, p)), must_stop
        )

    def segment_bytes(self, tokens: int) -> int:
        """Bytes of the rows of so many tokens."""
        return self._rows.bytes_for(tokens)

    def close(self) -> None:
        """Ends every generation as ABORTED and stops the thread."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        for work in (*self._running, *self._idle):
            work.abort()
        self._join()
        self._runtime.close()

    def _between_steps(self, call: Callable[[], T]) -> T:
        """Runs `call` on the engine thread and waits for it. Raises what it raises, and `EngineClosed`."""
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(call())
            except Exception as error:
                done.set_exception(error)

        with self._wake:
            if self._is_closing:
                raise EngineClosed(_CLOSED)
            self._calls.append(run)
            self._wake.notify()
        return done.result()

    def _join(self) -> None:
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _loop(self) -> None:
        try:
            while self._take_arrivals():
                self._step()
        except BaseException:
            logger.exception("engine thread died")
        finally:
            self._end_everything()

    def _take_arrivals(self) -> bool:
        """Waits for work; False when the engine is closing."""
        with self._wake:
            while not (self._is_closing or self._arrived or self._calls or self._running or self._idle):
                self._wake.wait()
            if self._is_closing:
                return False
            arrived, self._arrived = self._arrived, []
            calls, self._calls = self._calls, []
        for call in calls:
            call()
        for work in sorted(arrived, key=lambda work: work.is_idle):
            self._begin(work)
        return True

    def _begin(self, work: Work) -> None:
        if len(work.request.ledger) > self._info.context_limit_tokens:
            work.finish(
                FinishReason.FAILED,
                f"This conversation has {len(work.request.ledger):,} tokens and the model reads at most "
                f"{self._info.context_limit_tokens:,}. Start a new conversation.",
            )
        elif not work.is_idle:
            assert isinstance(work, Sequence), "only reading is always idle"
            self._preempt_idle_work()
            self._give_room(work)
            self._running.append(work)
        elif self._running:
            work.finish(FinishReason.PREEMPTED)
        else:
            self._give_room(work)
            self._idle.append(work)

    def _give_room(self, work: Work) -> None:
        try:
            self._relief.once_more(lambda: work.begin(self._info.context_limit_tokens))
        except torch.OutOfMemoryError as error:
            self._fail(work, error)

    def _preempt_idle_work(self) -> None:
        for work in self._idle:
            work.finish(FinishReason.PREEMPTED)
        self._forget_finished()

    def _is_wanted(self) -> bool:
        """Whether somebody came while idle work was at its forward."""
        return self._is_closing or bool(self._calls) or any(not work.is_idle for work in self._arrived)

    def _step(self) -> None:
        for work in (*self._running, *self._idle):
            if work.is_aborted:
                work.finish(FinishReason.ABORTED)
        self._forget_finished()
        if self._running:
            self._run(self._drafted(self._scheduler.plan(self._running, self._speed.estimate_s)))
        elif self._idle:
            self._run(self._drafted(self._scheduler.plan_idle(self._idle)), self._is_wanted)
        self._forget_finished()

    def _drafted(self, slots: list[Slot[S]]) -> list[Slot[S]]:
        """The same slots; the decode steps among them have what prompt lookup guesses."""
        decoding = [s.sequence for s in slots if isinstance(s.sequence, Sequence) and s.sequence.is_decoding]
        self._lookup.add_drafts(decoding, sum(slot.tokens for slot in slots), self._info.context_limit_tokens)
        return slots

    def _run(self, slots: list[Slot[S]], is_wanted: Callable[[], bool] = lambda: False) -> None:
        feeds = [Feed(s.sequence.slab, s.sequence.next_ids(s.tokens), s.sequence.logit_rows(s.tokens)) for s in slots]
        started = time.perf_counter()
        try:
            logits = self._relief.once_more(
                lambda: self._forward.run(feeds, lambda: is_wanted() or any(s.sequence.is_aborted for s in slots))
            )
        except StepAborted:
            return  # the aborted ones finish at the next step; the others' rows are computed again
        except Exception as error:
            if len(slots) == 1:
                self._fail(slots[0].sequence, error)
            for slot in slots if len(slots) > 1 else ():
                self._run([slot])  # each alone, so that only the culprit fails
            return
        is_reading = len(slots) == 1 and not slots[0].sequence.is_decoding
        rows = torch.split(logits, [feed.logit_rows for feed in feeds])
        for slot in slots:
            slot.sequence.fed(slot.tokens)
        sampling = [(s.sequence, own) for s, own in zip(slots, rows, strict=True) if isinstance(s.sequence, Sequence)]
        sample_together(sampling, self._stop_token_ids, self._info.context_limit_tokens, self._fail)
        if is_reading:  # timed only now: a GPU has computed when a token is known
            end = slots[0].sequence.kv_tokens
            self._speed.observe(end - slots[0].tokens, end, time.perf_counter() - started)

    def _fail(self, sequence: Work, error: Exception) -> None:
        """Ends one generation; what its slab held before the failed forward stays valid."""
        logger.error("forward failed kv_tokens=%d", sequence.kv_tokens, exc_info=error)
        sequence.finish(FinishReason.FAILED, str(translated(error)))

    def _in_passing(self, piece: Piece) -> bool:
        """Does a piece of work that no answer waits for, where it holds up none. False: it has to be tried again."""
        if any(not s.is_decoding for s in self._running):
            return False
        try:
            piece(MIN_CHUNK_TOKENS if self._running else self._scheduler.config.chunk_tokens)
        except StepAborted:
            return False
        return True

    def _forget_finished(self) -> None:
        for work in (*self._running, *self._idle):
            if work.is_finished:
                work.slab.trim()
        self._running = [s for s in self._running if not s.is_finished]
        self._idle = [w for w in self._idle if not w.is_finished]

    def _end_everything(self) -> None:
        with self._wake:
            self._is_closing = True
            left = [*self._running, *self._idle, *self._arrived]
            calls, self._calls = self._calls, []
            self._running, self._idle, self._arrived = [], [], []
        for sequence in left:
            sequence.finish(FinishReason.ABORTED)
        for call in calls:
            call()
