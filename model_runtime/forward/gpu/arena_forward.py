"""Packed forwards over the arena: the counterpart of `PackedForward` for devices with a variable-length kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from model_runtime.architecture.layer_settings import values_of
from model_runtime.forward.arena.arena import Arena, ArenaKV
from model_runtime.forward.arena.pieces import window_for
from model_runtime.forward.arena.step_inputs import StepRows, StepTensors, StepUpload, rows_for
from model_runtime.forward.arena.varlen import VarlenKernel
from model_runtime.forward.attention import ATTENTION_NAME, StepAborted, carrying
from model_runtime.forward.attention_options import AttentionOptions
from model_runtime.forward.few_rows.few_rows_forward import few_rows_forward
from model_runtime.forward.few_rows.kernels import MOST_ROWS
from model_runtime.forward.few_rows.patched_layers import speed_up
from model_runtime.forward.gpu.cuda_graphs import RecordedSteps
from model_runtime.forward.gpu.early_step import EarlyStep
from model_runtime.forward.gpu.graph_shapes import DecodeShape, StepShape, TurnShape
from model_runtime.forward.packed.kept_logits import kept_logits
from model_runtime.forward.packed.packed_positions import cache_for, counts_positions
from model_runtime.forward.packed.rope_sets import rows_of, separate_rope_sets
from model_runtime.forward.picked_ids import PickedIds
from model_runtime.forward.transformers_forward import Feed
from model_runtime.kv.slab import KVSlab

Fed = Sequence[tuple[ArenaKV, Sequence[int], int]]


@dataclass(slots=True)
class ArenaBatch:
    """An `AttentionBatch` whose conversations are all in one arena."""

    arena: Arena
    kernel: VarlenKernel
    step: StepTensors
    abort_if: Callable[[], bool] = lambda: False
    arriving: Sequence[Sequence[Any]] = ()  # one event per layer, for each KV whose rows are still being copied in
    layers_seen: list[int] = field(default_factory=list)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: AttentionOptions,
    ) -> torch.Tensor:
        """See `AttentionBatch`. Does not wait for the device."""
        self.begin_layer(layer)
        keys, values = self.arena.keys[layer], self.arena.values[layer]
        keys.index_copy_(0, self.step.slots, key[0].transpose(0, 1))
        values.index_copy_(0, self.step.slots, value[0].transpose(0, 1))
        return self.kernel.attend(query[0].transpose(0, 1), keys, values, self.step.table, options)[None]

    def begin_layer(self, layer: int) -> None:
        """Makes the device wait for this layer's rows that are still being copied in. Raises `StepAborted`."""
        # An abandoned engine thread may wake up again, and an out-of-bounds row makes the CUDA context unusable.
        if self.arena.is_closed or self.abort_if():
            raise StepAborted
        for events in self.arriving:
            torch.cuda.current_stream(self.arena.geometry.device).wait_event(events[layer])


class ArenaForward:
    """Runs a transformers model whose KVs are in an arena. After `record_steps` and `record_turns`, decode steps and
    short turns are replayed from recordings (CUDA graphs on CUDA). Use from one thread only."""

    def __init__(self, model: PreTrainedModel, arena: Arena, kernel: VarlenKernel) -> None:
        self.model = model
        self.arena = arena
        self.kernel = kernel
        self.device = arena.geometry.device
        self._upload = StepUpload(self.device, 4096)
        self._heads = max(int(n) for n in values_of(model.config.get_text_config(), "num_attention_heads"))
        is_cuda = self.device.type == "cuda"
        self.processors = torch.cuda.get_device_properties(self.device).multi_processor_count if is_cuda else 0
        self.recorded_steps: RecordedSteps | None = None
        self.recorded_turns: RecordedSteps | None = None
        self._ahead: EarlyStep | None = None
        self._without_own_products = speed_up(model, self.device)
        self.few_rows = few_rows_forward(model, arena, kernel)
        self._is_counting = counts_positions(model)
        separate_rope_sets(model)
        model.set_attn_implementation(ATTENTION_NAME)

    @torch.inference_mode()
    def run(self, feeds: Sequence[Feed], abort_if: Callable[[], bool] = lambda: False) -> torch.Tensor:
        """See `PackedForward.run`. Waits for the device only if no logits are wanted; otherwise sampling waits."""
        fed: list[tuple[ArenaKV, Sequence[int], int]] = []
        for feed in feeds:
            assert isinstance(feed.slab, ArenaKV), "a KV that is not in this arena"
            feed.slab.ensure_room(feed.slab.length_tokens + len(feed.token_ids))
            fed.append((feed.slab, feed.token_ids, feed.logit_rows))
        logits = self._known(fed)
        if logits is None:
            with rows_of([(kv, len(ids)) for kv, ids, _ in fed]):
                logits = self._computed(fed, abort_if)
        for kv, token_ids, _ in fed:
            kv.appended(token_ids)
            kv.arriving = None
        if not len(logits) and self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()  # so that callers time the reading, not the queueing
        return logits

    @torch.inference_mode()
    def run_ahead(self, kvs: Sequence[KVSlab], picked_ids: PickedIds) -> bool:
        """Starts the decode step that feeds each KV the id picked for it; the next `run` uses its logits. Overwrites
        the logits of the previous step. False if it cannot be started: its shape is not recorded yet, and recording
        would delay the picked ids, or a KV has no row left."""
        own = [kv for kv in kvs if isinstance(kv, ArenaKV) and kv.length_tokens < kv.span_tokens]
        if self.recorded_steps is None or len(own) < len(kvs) or self.arena.is_closed:
            return False
        rows = rows_for(self.arena, [(kv, (0,), 1) for kv in own])
        shape = DecodeShape.of(rows)
        if shape is None or not self.recorded_steps.knows(shape):
            return False
        self._ahead = EarlyStep(own, picked_ids, self.recorded_steps.run(shape, rows, picked_ids.ids))
        return True

    @torch.inference_mode()
    def record_waiting(self, must_stop: Callable[[], bool] = lambda: False) -> None:
        """Records shapes that had to be launched kernel by kernel. Call while idle: each takes tenths of a second."""
        if self.recorded_turns is not None:
            self.recorded_turns.record_waiting(must_stop)

    @property
    def has_own_products(self) -> bool:
        """Whether our own kernel computes the 4-bit products of few rows."""
        return self._without_own_products is not None

    def record_steps(self) -> None:
        """Turns on recording of decode steps, each shape when it is first needed."""
        self.recorded_steps = RecordedSteps(self._recordable, self.arena, "decode steps")

    def record_turns(self) -> None:
        """Turns on recording of short turns of one conversation, each shape after it was first needed."""
        self.recorded_turns = RecordedSteps(self._recordable, self.arena, "short turns")

    def close(self) -> None:
        """Drops the recordings, whose graphs hold memory, and restores the model's layers."""
        self.recorded_steps = self.recorded_turns = self._ahead = None
        if self._without_own_products is not None:
            self._without_own_products()

    def _known(self, fed: Fed) -> torch.Tensor | None:
        """The logits of the decode step that was started early, if it is the wanted one. It is dropped otherwise."""
        ahead, self._ahead = self._ahead, None
        if ahead is None or any(len(ids) != 1 or wanted != 1 for _, ids, wanted in fed):
            return None
        return ahead.logits_for([(kv, ids[0]) for kv, ids, _ in fed])

    def _computed(self, fed: Fed, abort_if: Callable[[], bool]) -> torch.Tensor:
        rows = rows_for(self.arena, fed)  # only now, because growing one span may have moved another
        arriving = [kv.arriving for kv, _, _ in fed if kv.arriving]
        logits = self._replayed(rows, abort_if, arriving)
        return self._launched(rows, abort_if, arriving) if logits is None else logits

    def _replayed(
        self, rows: StepRows, abort_if: Callable[[], bool], arriving: Sequence[Sequence[Any]]
    ) -> torch.Tensor | None:
        """Replays the step; None if it must be launched kernel by kernel. Raises `StepAborted` before it starts."""
        shape: StepShape | None = DecodeShape.of(rows)
        recorded = self.recorded_steps
        if shape is None and not arriving:  # while rows arrive, launching can wait for them layer by layer
            shape, recorded = TurnShape.of(rows, self._heads, self.processors), self.recorded_turns
        if shape is None or recorded is None or not recorded.is_ready(shape):
            return None
        if abort_if():
            raise StepAborted
        for events in arriving:
            torch.cuda.current_stream(self.device).wait_event(events[-1])
        return recorded.run(shape, rows)

    def _launched(
        self, rows: StepRows, abort_if: Callable[[], bool], arriving: Sequence[Sequence[Any]]
    ) -> torch.Tensor:
        if (window := self._piece_window(rows)) is not None:
            rows = rows.in_pieces(window)
        needed = len(rows.numbers)
        if needed > len(self._upload.buffer):
            self._upload = StepUpload(self.device, 2 * needed)
        self._upload.send(rows)
        step = self._upload.tensors(rows)
        # A forward without wanted logits still selects one row, because an empty selection would mean all rows.
        keep = step.logit_rows if rows.logit_rows else 1
        logits = self._logits(step, keep, ArenaBatch(self.arena, self.kernel, step, abort_if, arriving))
        return logits[: len(rows.logit_rows)].float()

    def _piece_window(self, rows: StepRows) -> int | None:
        """The window of the pieces into which attention of few rows is cut. The kernel itself splits single rows."""
        if rows.max_q == 1 or len(rows.token_ids) > MOST_ROWS:
            return None
        return window_for(rows.used_k, self._heads, self.processors)

    def _recordable(self, step: StepTensors) -> torch.Tensor:
        """The function that is recorded: float32 logits `(logit rows, vocabulary)`, without selection if all are
        wanted."""
        keep = step.logit_rows if len(step.logit_rows) < len(step.token_ids) else 0
        return self._logits(step, keep, ArenaBatch(self.arena, self.kernel, step)).float()

    def _logits(self, step: StepTensors, keep: torch.Tensor | int, batch: ArenaBatch) -> torch.Tensor:
        if self.few_rows is not None and self.few_rows.fits(step):
            return self.few_rows.logits(step, keep, batch)
        with carrying(batch):
            logits: torch.Tensor = self.model(
                input_ids=step.token_ids[None],
                position_ids=step.positions[None],
                logits_to_keep=keep,
                use_cache=False,
                **cache_for(step.positions, self._is_counting),
            ).logits
        return logits[0] if isinstance(keep, int) else kept_logits(logits[0], keep, len(step.token_ids))
