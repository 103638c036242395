"""The engine: one thread that owns every KV and runs packed forwards step by step."""

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

from model_runtime.architecture.config_check import check_config
from model_runtime.architecture.shape_check import check_vocabulary
from model_runtime.decoding.lookup import Lookup
from model_runtime.engine.generation import RunningGeneration
from model_runtime.engine.inbox import CLOSED, GIVEN_UP, Inbox
from model_runtime.engine.int8_drift import measure_drift
from model_runtime.engine.out_of_memory import FreeAndRetry, translated
from model_runtime.engine.passing_thread import in_passing_thread
from model_runtime.engine.read_speed import ReadSpeed, measure_reading
from model_runtime.engine.scheduler import Scheduler, SchedulerConfig
from model_runtime.engine.steps import Steps, TokenLimits
from model_runtime.engine.verification import Reread, compare_all, tolerance_of
from model_runtime.engine.work import Reading, Work
from model_runtime.forward.probe import probe_packing
from model_runtime.forward.runtime import DeviceRuntime, open_runtime
from model_runtime.interface import protocol
from model_runtime.interface.config import EngineConfig
from model_runtime.interface.errors import EngineClosed
from model_runtime.interface.events import FinishReason, Listener
from model_runtime.interface.findings import Verification
from model_runtime.interface.protocol import KV, GenerationRequest, ModelInfo, Pulse, ReadRequest
from model_runtime.interface.segments import SegmentIdentity
from model_runtime.kv.saved_rows import SavedRows
from model_runtime.kv.segment import KVSegment
from model_runtime.kv.slab import KVSlab, copy_beginning, own_slab
from model_runtime.loading.loaded import LoadedModel, model_info

logger = logging.getLogger(__name__)

T = TypeVar("T")
S = TypeVar("S", bound=Work)
_END_TIMEOUT_S = 30.0


class LocalEngine:
    """Implements `model_runtime.interface.protocol.Engine` for a loaded model.

    Its thread repeats: take new work from the inbox, plan a step, run one packed forward, sample, emit events. An
    exception in a forward fails only the request that caused it. Idle work runs while no generation is running, and
    ends when one arrives. Raises `ModelLoadError` when the model cannot share a forward between conversations.
    """

    def __init__(self, loaded: LoadedModel, config: EngineConfig, context_limit_tokens: int) -> None:
        self._config = config
        check_config(loaded.model.config, loaded.name)
        self._limits = TokenLimits(loaded.stop_token_ids, context_limit_tokens, check_vocabulary(loaded.model))
        geometry = probe_packing(loaded.model, loaded.kv_dtype, context_limit_tokens, step_tokens=config.kv_step_tokens)
        self._open = partial(open_runtime, loaded.model, geometry, config, context_limit_tokens)
        runtime = self._use(self._open())
        self._geometry = runtime.geometry
        self._tolerance = tolerance_of(loaded.model, loaded.kv_dtype, config.cold_kv_dtype)
        self._tokenizer = loaded.tokenizer.backend_tokenizer
        self._stop_strings = loaded.stop_strings
        memory = runtime.host_pool.take if runtime.host_pool else None
        self._rows = SavedRows(self._geometry, config.cold_kv_dtype, memory)
        self._idle_kvs: Callable[[], abc.Sequence[KV]] = tuple
        self._free_and_retry = FreeAndRetry(lambda: self._idle_kvs())
        self._scheduler = Scheduler(SchedulerConfig(config.prefill_chunk_tokens, config.idle_chunk_tokens))
        self._speed = ReadSpeed(config.prefill_chunk_tokens)
        self.lookup = Lookup(config.prompt_lookup)
        drift = measure_drift(self._forward, self._place, self._rows, self._tokenizer, context_limit_tokens)
        self._info = model_info(loaded, runtime.kernel, self._rows, context_limit_tokens, drift, self.lookup.notes)
        measure_reading(self._forward, self._place, context_limit_tokens, self._speed)
        self.lookup.measure(self._forward, self._place, context_limit_tokens)
        self._start_thread()

    def _use(self, runtime: DeviceRuntime) -> DeviceRuntime:
        self._runtime = runtime
        self._place, self._forward, self._transfers = runtime.place, runtime.forward, runtime.transfers
        self._kvs: weakref.WeakSet[KVSlab] = weakref.WeakSet()
        return runtime

    def _start_thread(self) -> None:
        inbox = Inbox()
        self._steps = Steps(
            inbox,
            self._runtime,
            self._free_and_retry,
            self._scheduler,
            self._speed,
            self.lookup,
            self._limits,
        )
        self._inbox = inbox
        self._thread = threading.Thread(
            target=self._loop, args=(inbox, self._steps), name="keepwarm-engine", daemon=True
        )
        self._thread.start()

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def runtime(self) -> DeviceRuntime:
        """What computes for this engine, until the next rebuild. For its own thread only; tests and benchmarks inspect
        it and replace parts of it."""
        return self._runtime

    @property
    def max_concurrent(self) -> int:
        return self._config.max_concurrent

    def new_kv(self) -> KVSlab:
        """An empty KV that holds no bytes yet."""
        kv = self._place.new_kv()
        self._kvs.add(kv)
        return kv

    def _own(self, kv: KV) -> KVSlab:
        """Raises `EngineClosed` for a KV from before a rebuild: the abandoned thread may still write to it."""
        slab = own_slab(kv)
        if slab not in self._kvs:
            raise EngineClosed(GIVEN_UP)
        return slab

    def give_memory_back_with(self, idle_kvs: Callable[[], abc.Sequence[KV]]) -> None:
        """See `Engine`."""
        self._idle_kvs = idle_kvs

    def pulse(self) -> Pulse:
        """The state of the engine thread."""
        return self._inbox.pulse()

    def rebuild(self) -> None:
        """Abandons the thread and all KVs and continues with new ones. The weights stay, because they are read-only."""
        if self._inbox.is_closing:
            raise EngineClosed(CLOSED)
        self._inbox.give_up(GIVEN_UP)
        self._runtime.give_up()  # a GPU has no memory for a second arena
        self._use(in_passing_thread(partial(self._open, self._runtime.host_pool)))
        self._start_thread()

    def kv_bytes(self, tokens: int) -> int:
        """An upper bound on the bytes that a KV of up to `tokens` tokens holds at any moment."""
        return self._place.bytes_for(tokens)

    def estimate_read_s(self, start_tokens: int, end_tokens: int) -> float:
        """Expected seconds to feed positions `start..end`, from the speeds measured so far."""
        return self._speed.estimate_s(start_tokens, end_tokens)

    def submit(self, request: GenerationRequest, listener: Listener) -> RunningGeneration:
        """Queues a generation. Every failure is reported as a `Finished` event."""
        kv = own_slab(request.kv)
        return self._queued(RunningGeneration(request, kv, listener, self._tokenizer, self._stop_strings))

    def read(self, request: ReadRequest, listener: Listener) -> Reading:
        """Queues idle reading. Every failure is reported as a `Finished` event."""
        return self._queued(Reading(request, own_slab(request.kv), listener))

    def _queued(self, work: S) -> S:
        if work.slab not in self._kvs or not self._inbox.ask(work):
            work.finish(FinishReason.FAILED, CLOSED if self._inbox.is_closing else GIVEN_UP)
        return work

    def call(self, call: Callable[[], T]) -> T:
        """Runs `call` on the engine thread between two steps and waits for it. In a thread of its own, torch code would
        slow the engine down (`passing_thread`). Raises what it raises, or `EngineClosed`."""
        return self._inbox.call(call)

    def release(self, kv: KV) -> None:
        """Frees the slab on the engine thread, after the running step."""
        slab = own_slab(kv)
        try:
            self._inbox.call(self._own(kv).free)
        except EngineClosed:
            if self._inbox.is_closing:
                self._join()
            slab.free()

    def stage(self, kv: KV, identity: SegmentIdentity, before: abc.Sequence[int] | None = None) -> protocol.Segment:
        """Copies these rows on the engine thread, between two steps."""
        return self.stage_run(kv, [identity], before)[0]

    def stage_run(
        self, kv: KV, identities: abc.Sequence[SegmentIdentity], before: abc.Sequence[int] | None = None
    ) -> list[protocol.Segment]:
        """Copies consecutive runs of rows between the same two steps. Also raises `ValueError` for rows with NaN or
        infinity."""
        slab = self._own(kv)

        def begin() -> list[Callable[[], KVSegment]]:
            first, *rest = identities
            return [self._transfers.begin_out(slab, first, before)] + [
                self._transfers.begin_out(slab, identity) for identity in rest
            ]

        return [self._rows.packed(wait()) for wait in self._inbox.call(begin)]

    def restore(self, kv: KV, segments: abc.Sequence[protocol.Segment], room_tokens: int = 0) -> float:
        """Appends segments to the slab between two steps. Reserves the room first, so that rows are not copied again as
        the slab grows."""
        slab = self._own(kv)
        exact = [self._rows.unpacked(segment) for segment in segments]

        def copy() -> float:
            started = time.perf_counter()
            self._free_and_retry.once_more(lambda: slab.ensure_room(room_tokens))
            for segment in exact:
                self._free_and_retry.once_more(partial(self._transfers.copy_in, slab, segment))
            return time.perf_counter() - started

        try:
            return self._inbox.call(copy)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            raise translated(error) from error

    def join(self, identity: SegmentIdentity, segments: abc.Sequence[protocol.Segment]) -> protocol.Segment | None:
        """Joins consecutive segments into one."""
        return self._rows.join(identity, segments)

    def copy_beginning(self, source: KV, target: KV, ids: abc.Sequence[int], least_tokens: int) -> tuple[int, int]:
        """Copies rows between two KVs on the device, between two steps."""
        copy = partial(copy_beginning, self._own(source), self._own(target), ids, least_tokens)
        try:
            return self._inbox.call(copy)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            raise translated(error) from error

    def save(self, segment: protocol.Segment, path: Path) -> int:
        """Writes the file atomically and returns its size in bytes."""
        return self._rows.save(segment, path)

    def load(self, identity: SegmentIdentity, path: Path) -> protocol.Segment:
        """Reads and verifies the segment in the file."""
        return self._rows.load(identity, path)

    def verify(
        self,
        scratch: KV,
        ledger: abc.Sequence[int],
        copies: abc.Sequence[KV | abc.Iterable[protocol.Segment]],
        must_stop: Callable[[], bool],
        is_long_rope: bool = False,
    ) -> Verification | None:
        """Compares stored rows with those of a re-read, in pieces between steps."""
        slab = self._own(scratch)
        slab.use_rope(is_long_rope)
        reread = Reread(self._forward, slab, ledger, self._tolerance, lambda: bool(self._inbox.arrived))
        exact = [c if isinstance(c, KVSlab) else map(self._rows.unpacked, c) for c in copies]  # type: ignore[arg-type]
        return compare_all(
            reread, self._geometry, exact, lambda p: self._inbox.call(partial(self._steps.in_passing, p)), must_stop
        )

    def segment_bytes(self, tokens: int) -> int:
        """How many bytes the saved rows of `tokens` tokens take."""
        return self._rows.bytes_for(tokens)

    def close(self) -> None:
        """Ends every generation as ABORTED and stops the thread."""
        self._inbox.close()
        if self._join():
            self._runtime.close()

    def _join(self) -> bool:
        """Waits for the thread to end. False if it hangs; it is then left behind."""
        if self._thread is not threading.current_thread():
            self._thread.join(_END_TIMEOUT_S)
        return not self._thread.is_alive()

    @staticmethod
    def _loop(inbox: Inbox, steps: Steps) -> None:
        died = True
        try:
            while (taken := inbox.take()) is not None:
                arrived, calls = taken
                for call in calls:
                    call()
                for work in sorted(arrived, key=lambda work: work.is_idle):
                    steps.begin(work)
                steps.step()
                steps.record_while_idle()
            died = False
        except BaseException:
            logger.exception("engine thread died")
        finally:
            inbox.end(FinishReason.FAILED if died else FinishReason.ABORTED, GIVEN_UP if died else None)
