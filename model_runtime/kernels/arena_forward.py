"""Packed forwards over the arena: `PackedForward`'s twin for devices with a variable-length kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from model_runtime.attention import ATTENTION_NAME, StepAborted
from model_runtime.forward import Feed
from model_runtime.kernels.ahead import Ahead
from model_runtime.kernels.arena import Arena, ArenaKV
from model_runtime.kernels.few_rows import speed_up
from model_runtime.kernels.few_rows_forward import few_rows_forward
from model_runtime.kernels.few_rows_kernels import MOST_ROWS
from model_runtime.kernels.pieces import window_for
from model_runtime.kernels.recorded import RecordedDecode
from model_runtime.kernels.step_inputs import StepRows, StepTensors, StepUpload, rows_for
from model_runtime.kernels.varlen import VarlenKernel
from model_runtime.kv_cache import KVSlab
from model_runtime.picks import Picks


@dataclass(slots=True)
class ArenaBatch:
    """An `AttentionBatch` whose conversations all lie in one arena."""

    arena: Arena
    kernel: VarlenKernel
    step: StepTensors
    abort_if: Callable[[], bool] = lambda: False
    arriving: Sequence[Sequence[Any]] = ()  # of every KV whose rows are still being copied in, an event a layer
    layers_seen: list[int] = field(default_factory=list)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """As `AttentionBatch` says; nothing waits for the device."""
        self.begin_layer(layer)
        keys, values = self.arena.keys[layer], self.arena.values[layer]
        keys.index_copy_(0, self.step.slots, key[0].transpose(0, 1))
        values.index_copy_(0, self.step.slots, value[0].transpose(0, 1))
        return self.kernel.attend(query[0].transpose(0, 1), keys, values, self.step.table, scaling, window)[None]

    def begin_layer(self, layer: int) -> None:
        """The device waits for this layer's rows that are still being copied in. Raises `StepAborted`."""
        # An engine that hung and was given up goes on: a GPU never forgives a row out of bounds.
        if self.arena.is_closed or self.abort_if():
            raise StepAborted
        for events in self.arriving:
            torch.cuda.current_stream(self.arena.geometry.device).wait_event(events[layer])


class ArenaForward:
    """A transformers model whose KVs lie in an arena. `recorded` replays decode steps (a CUDA graph on CUDA). Use from
    one thread only."""

    def __init__(self, model: PreTrainedModel, arena: Arena, kernel: VarlenKernel, recorded: bool) -> None:
        self.model = model
        self.arena = arena
        self.kernel = kernel
        self.device = arena.geometry.device
        self._upload = StepUpload(self.device, 4096)
        self._heads = int(model.config.get_text_config().num_attention_heads)
        is_cuda = self.device.type == "cuda"
        self.processors = torch.cuda.get_device_properties(self.device).multi_processor_count if is_cuda else 0
        self.recorded = RecordedDecode(self._logits_of_a_decode, arena) if recorded else None
        self._ahead: Ahead | None = None
        self._without_own_products = speed_up(model, self.device)
        self.few_rows = few_rows_forward(model, arena, kernel)
        model.set_attn_implementation(ATTENTION_NAME)

    @torch.inference_mode()
    def run(self, feeds: Sequence[Feed], abort_if: Callable[[], bool] = lambda: False) -> torch.Tensor:
        """As `PackedForward.run`. Waits for the device only when no logits are wanted: else the sampling does."""
        fed: list[tuple[ArenaKV, Sequence[int], int]] = []
        for feed in feeds:
            assert isinstance(feed.slab, ArenaKV), "a KV that does not lie in this arena"
            feed.slab.ensure_room(feed.slab.length_tokens + len(feed.token_ids))
            fed.append((feed.slab, feed.token_ids, feed.logit_rows))
        rows = rows_for(self.arena, fed)  # only now: making room for one may have moved another
        arriving = [kv.arriving for kv, _, _ in fed if kv.arriving]
        is_decode = all(len(ids) == 1 and wanted == 1 for _, ids, wanted in fed)
        ahead, self._ahead = self._ahead, None
        known = ahead.logits_for([(kv, ids[0]) for kv, ids, _ in fed]) if ahead is not None and is_decode else None
        if known is not None:
            logits = known
        elif is_decode and self.recorded is not None and self.recorded.fits(rows):
            for events in arriving:
                torch.cuda.current_stream(self.device).wait_event(events[-1])
            logits = self.recorded.run(rows)
        else:
            logits = self._eager(rows, abort_if, arriving)
        for kv, token_ids, _ in fed:
            kv.appended(token_ids)
            kv.arriving = None
        if not rows.logit_rows and self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()  # so that reading speed is measured, not queueing
        return logits

    @torch.inference_mode()
    def run_ahead(self, kvs: Sequence[KVSlab], picks: Picks) -> bool:
        """Starts the decode step that feeds each KV the id that was picked for it; the next `run` finds it. The logits
        of the step before are overwritten. False where it cannot be started: recording it first would hold up what was
        picked, and a KV may have no row left."""
        own = [kv for kv in kvs if isinstance(kv, ArenaKV) and kv.length_tokens < kv.span_tokens]
        if self.recorded is None or len(own) < len(kvs) or self.arena.is_closed:
            return False
        rows = rows_for(self.arena, [(kv, (0,), 1) for kv in own])
        if not self.recorded.knows(rows):
            return False
        self._ahead = Ahead(own, picks, self.recorded.run(rows, picks.ids))
        return True

    @property
    def has_own_products(self) -> bool:
        """Whether our kernel multiplies few rows with the 4-bit matrices."""
        return self._without_own_products is not None

    def do_without_few_rows(self) -> None:
        """The model's own layers compute few rows too; steps are recorded anew."""
        self.few_rows = None
        if self.recorded is not None:
            self.recorded = RecordedDecode(self._logits_of_a_decode, self.arena)

    def close(self) -> None:
        """Forgets the recorded steps, whose graphs hold memory, and leaves the model's layers as they were."""
        self.recorded = self._ahead = None
        if self._without_own_products is not None:
            self._without_own_products()

    def _eager(self, rows: StepRows, abort_if: Callable[[], bool], arriving: Sequence[Sequence[Any]]) -> torch.Tensor:
        if (window := self._piece_window(rows)) is not None:
            rows = rows.in_pieces(window)
        needed = len(rows.numbers)
        if needed > len(self._upload.buffer):
            self._upload = StepUpload(self.device, 2 * needed)
        self._upload.send(rows)
        sizes = (len(rows.token_ids), len(rows.logit_rows), len(rows.used_k))
        step = self._upload.tensors(*sizes, rows.max_q, rows.max_k, rows.pieces)
        # A forward that wants nothing still has to name a row: an empty choice would mean "all of them".
        keep = step.logit_rows if rows.logit_rows else 1
        logits = self._logits(step, keep, ArenaBatch(self.arena, self.kernel, step, abort_if, arriving))
        return logits[: len(rows.logit_rows)].float()

    def _piece_window(self, rows: StepRows) -> int | None:
        """Into pieces of how many keys the attention of few rows is cut; single rows the kernel cuts up itself."""
        if rows.max_q == 1 or len(rows.token_ids) > MOST_ROWS:
            return None
        return window_for(rows.used_k, self._heads, self.processors)

    def _logits_of_a_decode(self, step: StepTensors) -> torch.Tensor:
        """float32 `(sequences, vocabulary)`: what is recorded."""
        return self._logits(step, 0, ArenaBatch(self.arena, self.kernel, step)).float()

    def _logits(self, step: StepTensors, keep: torch.Tensor | int, batch: ArenaBatch) -> torch.Tensor:
        if self.few_rows is not None and self.few_rows.fits(step):
            return self.few_rows.logits(step, keep, batch)
        logits: torch.Tensor = self.model(
            input_ids=step.token_ids[None],
            position_ids=step.positions[None],
            logits_to_keep=keep,
            use_cache=False,
            packed=batch,
        ).logits
        return logits[0]
