"""A forward of few rows over the arena: decode steps and short turns of the common decoder, in five to nine kernels per
layer where transformers' own layers take about forty (decision 0016)."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from model_runtime.architecture.decoder_layout import has_common_layout, head_norms_of, projections_of
from model_runtime.architecture.shape_check import check_decoder_shapes
from model_runtime.forward.arena.arena import Arena
from model_runtime.forward.arena.step_inputs import StepTensors
from model_runtime.forward.arena.varlen import VarlenKernel
from model_runtime.forward.few_rows.four_bit_product import covers
from model_runtime.forward.few_rows.kernels import MOST_ROWS
from model_runtime.forward.few_rows.nvrtc import NvrtcUnavailable
from model_runtime.forward.few_rows.operations import CudaOperations, Operations, TorchOperations

logger = logging.getLogger(__name__)


def current_device(device: torch.device) -> AbstractContextManager[Any]:
    """A context with `device` as the current one: our kernels run on the thread's current device, not on that of their
    tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


class LayerGate(Protocol):
    """Called before each layer. Waits for rows that are still arriving, and raises `StepAborted`."""

    def begin_layer(self, layer: int) -> None: ...


class FewRowsForward:
    """Computes the same as the model, for up to `MOST_ROWS` rows. Engine thread only."""

    def __init__(self, model: Any, arena: Arena, kernel: VarlenKernel, operations: Operations) -> None:
        config = model.config.get_text_config()
        self._model = model
        self._arena = arena
        self._layers = [_Layer(layer, config, kernel, operations) for layer in model.model.layers]
        self._final_norm = operations.norm(model.model.norm)

    def fits(self, step: StepTensors) -> bool:
        """Whether the step has few enough rows."""
        return len(step.token_ids) <= MOST_ROWS

    def logits(self, step: StepTensors, keep: torch.Tensor | int, gate: LayerGate) -> torch.Tensor:
        """`(rows, vocabulary)` in the model's dtype for the rows that `keep` selects, like transformers'
        `logits_to_keep`: given rows, the last few, or all for 0."""
        with current_device(self._arena.geometry.device):
            return self._logits(step, keep, gate)

    def _logits(self, step: StepTensors, keep: torch.Tensor | int, gate: LayerGate) -> torch.Tensor:
        x = self._model.get_input_embeddings()(step.token_ids)
        cosine, sine = (table[0] for table in self._model.model.rotary_emb(x[None], step.positions[None]))
        for number, layer in enumerate(self._layers):
            gate.begin_layer(number)
            keys, values = self._arena.keys[number], self._arena.values[number]
            attended = layer.attend(layer.project(x), cosine, sine, step, keys, values)
            x = layer.output(attended, x)
            x = layer.down(layer.gated(x), x)
        kept = x[-keep:] if isinstance(keep, int) else x[keep]
        logits: torch.Tensor = self._model.get_output_embeddings()(self._final_norm(kept))
        return logits


class _Layer:
    def __init__(self, layer: Any, config: Any, kernel: VarlenKernel, operations: Operations) -> None:
        matrices = projections_of(layer)
        inputs = [matrices[name] for name in ("query", "key", "value")]
        self.project = operations.product(inputs, layer.input_layernorm)
        self.attend = operations.attention(layer, config, kernel)
        self.output = operations.product([matrices["output"]])
        self.gated = operations.gated(matrices["gate"], matrices["up"], layer.post_attention_layernorm)
        self.down = operations.product([matrices["down"]])


def few_rows_forward(model: PreTrainedModel, arena: Arena, kernel: VarlenKernel) -> FewRowsForward | None:
    """The forward for this model on the arena's device; None if the model's own layers must compute few rows too. Logs
    the reason only if something is wrong; an unknown architecture is not."""
    device = arena.geometry.device
    if not has_common_layout(model):
        return None
    check_decoder_shapes(model)
    if device.type == "cpu":
        return FewRowsForward(model, arena, kernel, TorchOperations())
    if torch.cuda.get_device_capability(device) < (8, 0) or not _is_covered(model, arena):
        return None
    try:
        return FewRowsForward(model, arena, kernel, CudaOperations(model, device))
    except (NvrtcUnavailable, ValueError) as error:
        logger.warning("few rows run through the model's own layers, not our own forward: %s", error)
        return None


def _is_covered(model: Any, arena: Arena) -> bool:
    """Whether the CUDA kernels support all parts of the model."""
    numbers = (model.get_input_embeddings().weight, *(norm.weight for norm in _norms(model)))
    return (
        arena.geometry.dtype == torch.bfloat16
        and all(weight.dtype == torch.bfloat16 for weight in numbers)
        and all(shape.key_dim == shape.value_dim and shape.key_dim % 2 == 0 for shape in arena.geometry.layers)
        and all(covers(matrix) for layer in model.model.layers for matrix in projections_of(layer).values())
    )


def _norms(model: Any) -> Iterable[Any]:
    for layer in model.model.layers:
        yield from (layer.input_layernorm, layer.post_attention_layernorm)
        yield from (norm for norm in head_norms_of(layer) if norm is not None)
    yield model.model.norm
