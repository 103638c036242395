"""The engine: one thread that owns every KV and runs packed forwards, step by step."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import abc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from model_runtime import types
from model_runtime.attention import StepAborted
from model_runtime.beginnings import copy_beginning
from model_runtime.cold_drift import measure_drift
from model_runtime.cold_rows import ColdRows
from model_runtime.config import EngineConfig
from model_runtime.errors import EngineClosed
from model_runtime.failures import translated
from model_runtime.forward import Feed
from model_runtime.kernels.device import DeviceRuntime, open_runtime
from model_runtime.kv_cache import KVSlab, own_slab
from model_runtime.loaded import LoadedModel, model_info
from model_runtime.lookup import Lookup
from model_runtime.passing_thread import in_passing_thread
from model_runtime.picks import Picks
from model_runtime.probe import probe_packing
from model_runtime.read_speed import ReadSpeed, measure_reading
from model_runtime.reading import Reading
from model_runtime.relief import Relief
from model_runtime.scheduler import MIN_CHUNK_TOKENS, Scheduler, SchedulerConfig, Slot
from model_runtime.segments import SegmentIdentity
from model_runtime.sequence import Sequence, sample_together
from model_runtime.shift import CLOSED, GIVEN_UP, Shift, Work
from model_runtime.snapshot import Segment
from model_runtime.types import KV, FinishReason, GenerationRequest, Listener, ModelInfo, Pulse, ReadRequest
from model_runtime.verdict import Verification
from model_runtime.verification import ROUNDED, Piece, Reread, compare_all, tolerance_of

logger = logging.getLogger(__name__)

T = TypeVar("T")
S = TypeVar("S", bound=Work)
_END_TIMEOUT_S = 30.0


class Engine:
    """Implements `model_runtime.types.Engine` for a loaded model.

    A step is: take what was asked, plan, run one packed forward, sample, emit events. An exception in a forward costs
    the request that caused it, nobody else's. Idle work runs while there is no request, and ends when one comes. Raises
    `ModelLoadError` when the model cannot be packed.
    """

    def __init__(self, loaded: LoadedModel, config: EngineConfig, context_limit_tokens: int) -> None:
        self._config = config
        self._stop_token_ids = loaded.stop_token_ids
        geometry = probe_packing(loaded.model, loaded.kv_dtype, context_limit_tokens, step_tokens=config.kv_step_tokens)
        self._open = partial(open_runtime, loaded.model, geometry, config, context_limit_tokens)
        runtime = self._use(self._open())
        self._geometry = runtime.geometry
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
        measure_reading(self._forward, self._place, context_limit_tokens, self._speed)
        self._lookup.measure(self._forward, self._place)
        self._begin_shift()

    def _use(self, runtime: DeviceRuntime) -> DeviceRuntime:
        self._runtime = runtime
        self._is_ahead = self._has_guesses = False
        self._place, self._forward, self._transfers = runtime.place, runtime.forward, runtime.transfers
        self._kvs: weakref.WeakSet[KVSlab] = weakref.WeakSet()
        return runtime

    def _begin_shift(self) -> None:
        self._shift = Shift()
        self._thread = threading.Thread(target=self._loop, args=(self._shift,), name="keepwarm-engine", daemon=True)
        self._thread.start()

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def max_concurrent(self) -> int:
        return self._config.max_concurrent

    def new_kv(self) -> KVSlab:
        """An empty KV that holds no bytes yet."""
        kv = self._place.new_kv()
        self._kvs.add(kv)
        return kv

    def _own(self, kv: KV) -> KVSlab:
        """Raises `EngineClosed` for a KV from before a rebuild: the thread that was given up may still write to it."""
        slab = own_slab(kv)
        if slab not in self._kvs:
            raise EngineClosed(GIVEN_UP)
        return slab

    def pulse(self) -> Pulse:
        """How the engine's thread is doing."""
        return self._shift.pulse()

    def rebuild(self) -> None:
        """Gives the thread and all KVs up and goes on with new ones. The weights stay: nobody writes to them."""
        if self._shift.is_closing:
            raise EngineClosed(CLOSED)
        self._shift.give_up(GIVEN_UP)
        self._runtime.give_up()  # a GPU has no room for a second arena beside it
        self._use(in_passing_thread(partial(self._open, self._runtime.host_pool)))
        self._begin_shift()

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
        if work.slab not in self._kvs or not self._shift.ask(work):
            work.finish(FinishReason.FAILED, CLOSED if self._shift.is_closing else GIVEN_UP)
        return work

    def release(self, kv: KV) -> None:
        """Frees the slab on the engine thread; waits for the running step."""
        slab = own_slab(kv)
        try:
            self._shift.call(self._own(kv).free)
        except EngineClosed:
            if self._shift.is_closing:
                self._join()
            slab.free()

    def stage(self, kv: KV, identity: SegmentIdentity, before: abc.Sequence[int] | None = None) -> types.Segment:
        """A copy of these rows, made by the engine thread between two steps."""
        return self.stage_run(kv, [identity], before)[0]

    def stage_run(
        self, kv: KV, identities: abc.Sequence[SegmentIdentity], before: abc.Sequence[int] | None = None
    ) -> list[types.Segment]:
        """Copies of rows that follow one another, all made between the same two steps."""
        slab = self._own(kv)

        def begin() -> list[Callable[[], Segment]]:
            first, *rest = identities
            return [self._transfers.begin_out(slab, first, before)] + [
                self._transfers.begin_out(slab, identity) for identity in rest
            ]

        return [self._rows.packed(wait()) for wait in self._shift.call(begin)]

    def restore(self, kv: KV, segments: abc.Sequence[types.Segment], room_tokens: int = 0) -> float:
        """Appends segments to the slab between two steps; room first, so that it is not copied as it grows."""
        slab = self._own(kv)
        exact = [self._rows.unpacked(segment) for segment in segments]

        def copy() -> float:
            started = time.perf_counter()
            self._relief.once_more(lambda: slab.ensure_room(room_tokens))
            for segment in exact:
                self._relief.once_more(partial(self._transfers.copy_in, slab, segment))
            return time.perf_counter() - started

        try:
            return self._shift.call(copy)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            raise translated(error) from error

    def join(self, identity: SegmentIdentity, segments: abc.Sequence[types.Segment]) -> types.Segment | None:
        """Segments that follow one another as one."""
        return self._rows.join(identity, segments)

    def copy_beginning(self, source: KV, target: KV, ids: abc.Sequence[int], least_tokens: int) -> tuple[int, int]:
        """Rows copied on the device, between two steps."""
        copy = partial(copy_beginning, self._own(source), self._own(target), ids, least_tokens)
        try:
            return self._shift.call(copy)
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
        reread = Reread(self._forward, self._own(scratch), ledger, self._tolerance, lambda: bool(self._shift.arrived))
        exact = [c if isinstance(c, KVSlab) else map(self._rows.unpacked, c) for c in copies]  # type: ignore[arg-type]
        return compare_all(
            reread, self._geometry, exact, lambda p: self._shift.call(partial(self._in_passing, p)), must_stop
        )

    def segment_bytes(self, tokens: int) -> int:
        """Bytes of the rows of so many tokens."""
        return self._rows.bytes_for(tokens)

    def close(self) -> None:
        """Ends every generation as ABORTED and stops the thread."""
        self._shift.close()
        if self._join():
            self._runtime.close()

    def _join(self) -> bool:
        """Whether the thread has ended; one that hangs is left behind."""
        if self._thread is not threading.current_thread():
            self._thread.join(_END_TIMEOUT_S)
        return not self._thread.is_alive()

    def _loop(self, shift: Shift) -> None:
        died = True
        try:
            while (asked := shift.take()) is not None:
                for call in asked[1]:
                    call()
                for work in sorted(asked[0], key=lambda work: work.is_idle):
                    self._begin(shift, work)
                self._step(shift)
            died = False
        except BaseException:
            logger.exception("engine thread died")
        finally:
            shift.end(FinishReason.FAILED if died else FinishReason.ABORTED, GIVEN_UP if died else None)

    def _begin(self, shift: Shift, work: Work) -> None:
        if len(work.request.ledger) > self._info.context_limit_tokens:
            work.finish(
                FinishReason.FAILED,
                f"This conversation has {len(work.request.ledger):,} tokens and the model reads at most "
                f"{self._info.context_limit_tokens:,}. Start a new conversation.",
            )
        elif not work.is_idle:
            assert isinstance(work, Sequence), "only reading is always idle"
            self._preempt_idle_work(shift)
            self._give_room(work)
            shift.running.append(work)
        elif shift.running:
            work.finish(FinishReason.PREEMPTED)
        else:
            self._give_room(work)
            shift.idle.append(work)

    def _give_room(self, work: Work) -> None:
        try:
            self._relief.once_more(lambda: work.begin(self._info.context_limit_tokens))
        except torch.OutOfMemoryError as error:
            self._fail(work, error)

    def _preempt_idle_work(self, shift: Shift) -> None:
        for work in shift.idle:
            work.finish(FinishReason.PREEMPTED)
        self._forget_finished(shift)

    def _step(self, shift: Shift) -> None:
        for work in (*shift.running, *shift.idle):
            if work.is_aborted:
                work.finish(FinishReason.ABORTED)
        self._forget_finished(shift)
        if shift.running:
            self._run(shift, self._drafted(self._scheduler.plan(shift.running, self._speed.estimate_s)))
        elif shift.idle:
            self._run(shift, self._drafted(self._scheduler.plan_idle(shift.idle)), shift.is_wanted)
        self._forget_finished(shift)

    def _drafted(self, slots: list[Slot[S]]) -> list[Slot[S]]:
        """The same slots; the decode steps among them have what prompt lookup guesses. A step that runs already has
        no guesses; the one behind it is not started ahead then, so that it can have them."""
        decoding = [s.sequence for s in slots if isinstance(s.sequence, Sequence) and s.sequence.is_decoding]
        self._lookup.add_drafts(decoding, sum(slot.tokens for slot in slots), self._info.context_limit_tokens)
        self._has_guesses = any(sequence.has_draft for sequence in decoding)
        if self._is_ahead:
            for sequence in decoding:
                sequence.drop_draft()
        return slots

    def _run_ahead(self, shift: Shift, sequences: abc.Sequence[Sequence], picks: Picks) -> None:
        """Between two steps of nothing but decoding: starts the second before the host looks at what was picked, if
        somebody goes on."""
        run_ahead = self._runtime.run_ahead
        if run_ahead is None or self._has_guesses or set(shift.running) - set(sequences):
            return
        if all(s.is_decoding for s in sequences) and not all(s.ends_with_next for s in sequences):
            self._is_ahead = run_ahead([sequence.slab for sequence in sequences], picks)

    def _run(self, shift: Shift, slots: list[Slot[S]], is_wanted: Callable[[], bool] = lambda: False) -> None:
        feeds = [Feed(s.sequence.slab, s.sequence.next_ids(s.tokens), s.sequence.logit_rows(s.tokens)) for s in slots]
        started = time.perf_counter()
        shift.begins(sum(self._speed.estimate_s(s.sequence.kv_tokens, s.sequence.kv_tokens + s.tokens) for s in slots))

        def is_vain() -> bool:
            return shift.is_over or is_wanted() or any(s.sequence.is_aborted for s in slots)

        try:
            logits = self._relief.once_more(lambda: self._forward.run(feeds, is_vain))
        except StepAborted:
            return  # the aborted ones finish at the next step; the others' rows are computed again
        except Exception as error:
            if shift.is_over:
                return
            if len(slots) == 1:
                self._fail(slots[0].sequence, error)
            for slot in slots if len(slots) > 1 else ():
                self._run(shift, [slot], is_wanted)  # each alone, so that only the culprit fails
            return
        if shift.is_over:  # it hung, and was given up: what it brings is nobody's
            return
        is_reading = len(slots) == 1 and not slots[0].sequence.is_decoding
        rows = torch.split(logits, [feed.logit_rows for feed in feeds])
        for slot in slots:
            slot.sequence.fed(slot.tokens)
        sampling = [(s.sequence, own) for s, own in zip(slots, rows, strict=True) if isinstance(s.sequence, Sequence)]
        self._is_ahead = False
        run_ahead = partial(self._run_ahead, shift)
        sample_together(sampling, self._stop_token_ids, self._info.context_limit_tokens, self._fail, run_ahead)
        if is_reading:  # timed only now: a GPU has computed when a token is known
            end = slots[0].sequence.kv_tokens
            self._speed.observe(end - slots[0].tokens, end, time.perf_counter() - started)

    def _fail(self, sequence: Work, error: Exception) -> None:
        """Ends one generation; what its slab held before the failed forward stays valid."""
        logger.error("forward failed kv_tokens=%d", sequence.kv_tokens, exc_info=error)
        sequence.finish(FinishReason.FAILED, str(translated(error)))

    def _in_passing(self, piece: Piece) -> bool:
        """Does a piece of work that no answer waits for, where it holds up none. False: it has to be tried again."""
        if any(not s.is_decoding for s in self._shift.running):
            return False
        try:
            piece(MIN_CHUNK_TOKENS if self._shift.running else self._scheduler.config.chunk_tokens)
        except StepAborted:
            return False
        return True

    def _forget_finished(self, shift: Shift) -> None:
        for work in (*shift.running, *shift.idle):
            if work.is_finished:
                work.slab.trim()
        shift.running = [s for s in shift.running if not s.is_finished]
        shift.idle = [w for w in shift.idle if not w.is_finished]
