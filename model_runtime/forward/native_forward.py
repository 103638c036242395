"""Packed forwards of a model like Llama, Qwen2, Qwen3 or Gemma 3 through our own CPU kernels.

A step of few rows (decoding, a short turn, a draft) is one call that runs outside Python and the GIL; many rows
(reading) take one call every few layers, so that an abort takes effect soon. Both append to the slabs that
`PackedForward` uses, in float32 or float16, and compute in float32 what the model's own forward computes on the
de-quantised weights. A row's numbers have the same bits however the rows around it are cut into steps: cached rows
equal re-read rows, also in float16, since attention uses only what the slabs hold.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from model_runtime.architecture.decoder_layout import (
    PROJECTIONS,
    SLIDING,
    has_common_layout,
    has_gemma_layout,
    head_dim_of,
    head_norms_of,
    norm_factors,
    norms_of,
    projections_of,
    rope_kinds,
    rotary_tables,
)
from model_runtime.architecture.shape_check import check_decoder_shapes
from model_runtime.forward.attention import StepAborted
from model_runtime.forward.transformers_forward import Feed, PackedForward
from model_runtime.kv.geometry import KVGeometry
from model_runtime.kv.slab import KVSlab
from model_runtime.native.native_library import LayerStruct, MatrixStruct, ModelStruct, SpanStruct
from model_runtime.weights.native_matrix import NativeLinear, NativeMatrix, padded_rows

EXACT_GAP = 1e-3  # tolerance for another order of summation, in standard deviations of the logits
# The root mean square that activations of so many bits may cost; a wrong product costs about 1.
INTEGER_GAPS = {8: 0.3, 16: 0.01}
HALF_GAP = 0.03  # tolerance for rows rounded to float16; the embedded model needs 0.002
_LARGEST_HEAD_DIM = 256
_TABLE_TOKENS = 2048
_WRONG_SIZES = 2
_READ_TOGETHER = (("query", "key", "value"), ("gate", "up"))  # matrices whose inputs are put in order once
_LAYER_ROWS = 4096  # rows times layers in one call: about 60 ms on two cores without a history


def runs_natively(model: PreTrainedModel) -> bool:
    """Whether the kernels support this model: its layout, activation, attention and matrices. Raises `ModelLoadError`
    if its parts do not fit together."""
    if not (has_common_layout(model) or has_gemma_layout(model)):
        return False
    config = model.config.get_text_config()
    widths = (head_dim_of(config), config.hidden_size, config.intermediate_size)
    matrices = [matrix for layer in model.model.layers for matrix in projections_of(layer).values()]
    is_native = (
        all(width % 32 == 0 for width in widths)
        and head_dim_of(config) <= _LARGEST_HEAD_DIM
        and all(isinstance(matrix, NativeLinear) for matrix in (*matrices, model.get_output_embeddings()))
        and _matrix(model.get_output_embeddings()).order is None
        and all(map(_shares_orders, model.model.layers))
    )
    if is_native:
        check_decoder_shapes(model)
    return is_native


def _shares_orders(layer: nn.Module) -> bool:
    """Whether matrices that read the same inputs want them in the same order: those of one calibration do."""
    matrices = {name: _matrix(module) for name, module in projections_of(layer).items()}
    for first, *others in _READ_TOGETHER:
        if not all(_is_same(matrices[first].order, matrices[name].order) for name in others):
            return False
    return True


def _is_same(order: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return order is other if order is None or other is None else torch.equal(order, other)


def gap_to(native: NativeForward, model: PreTrainedModel, geometry: KVGeometry, own: KVGeometry) -> float:
    """The largest difference between the logits of two conversations, read together and continued on rows of `own`
    dtype, and those that each gets alone from the model's own layers, in standard deviations. Detects compilers and
    processors that miscalculate, and models whose keys do not fit into float16."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    packed = PackedForward(model)
    expected = torch.cat([packed.run([Feed(KVSlab(geometry), ids, 1)]) for ids in _conversations(vocabulary)])
    return float(((continued(native, vocabulary, own) - expected) / expected.std()).abs().max())


def rounding_gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The root mean square of what activations as bytes change in the same logits, in standard deviations."""
    return float(((found - expected) / expected.std()).square().mean().sqrt())


def _conversations(vocabulary: int) -> tuple[list[int], list[int]]:
    return [(7 * i + 3) % vocabulary for i in range(40)], [(11 * i + 5) % vocabulary for i in range(9)]


def continued(forward: NativeForward | PackedForward, vocabulary: int, own: KVGeometry) -> torch.Tensor:
    """Logits of the last token of two conversations, read and continued together."""
    near, far = _conversations(vocabulary)
    slabs = [KVSlab(own), KVSlab(own)]
    forward.run([Feed(slabs[0], near[:-1], 0), Feed(slabs[1], far[:-1], 0)])
    return forward.run([Feed(slabs[0], near[-1:], 1), Feed(slabs[1], far[-1:], 1)])


class NativeForward:
    """A forward with the interface of `PackedForward`. Use from one thread only."""

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config.get_text_config()
        self.model = model
        self.device = torch.device("cpu")
        self._vocabulary = int(config.vocab_size)
        self._layers = [_Layer(layer) for layer in model.model.layers]
        self._head = _matrix(model.get_output_embeddings())
        self._final_norm = norm_factors(model.model.norm)
        self._positions = _Positions(model.model.rotary_emb, config)
        self._kernels = self._head.kernels
        self.kernel_name = f"Keepwarm's own (CPU, {torch.backends.cpu.get_cpu_capability()})"
        ropes = rope_kinds(config)
        kinds = getattr(config, "layer_types", None) or [""] * len(self._layers)
        places = [(kind == SLIDING, ropes.index(kind) if kind in ropes else 0) for kind in kinds]
        self._structs = (LayerStruct * len(self._layers))(
            *(layer.struct(*place) for layer, place in zip(self._layers, places, strict=True))
        )
        self.struct = ModelStruct(
            self._structs,
            self._final_norm.data_ptr(),
            self._head.struct,
            float(config.rms_norm_eps),
            float(model.model.layers[0].self_attn.scaling),
            *(len(self._layers), config.hidden_size, config.num_attention_heads, config.num_key_value_heads),
            *(head_dim_of(config), config.intermediate_size, self._vocabulary),
            *(int(config.sliding_window or 0) if SLIDING in kinds else 0, len(ropes), has_gemma_layout(model)),
        )
        self._slab_shape = (len(self._layers), config.num_key_value_heads, head_dim_of(config))

    @torch.inference_mode()
    def run(self, feeds: Sequence[Feed], abort_if: Callable[[], bool] = lambda: False) -> torch.Tensor:
        """See `PackedForward.run`."""
        ids: list[int] = []
        positions: list[int] = []
        wanted: list[int] = []
        spans = _Spans(len(feeds))
        for feed in feeds:
            past, tokens = feed.slab.length_tokens, len(feed.token_ids)
            feed.slab.ensure_room(past + tokens)
            self._check(feed.slab)
            spans.add(feed.slab, len(ids), tokens, past)
            ids.extend(feed.token_ids)
            positions.extend(range(past, past + tokens))
            wanted.extend(range(len(ids) - feed.logit_rows, len(ids)))
        x = self.model.get_input_embeddings()(torch.tensor(ids)).contiguous()
        cosine, sine = self._positions.at(positions)
        logits = torch.empty(len(wanted), padded_rows(self._vocabulary, self._kernels))
        layers_a_call = max(1, _LAYER_ROWS // len(ids))
        for first in range(0, len(self._layers), layers_a_call):
            if abort_if():
                raise StepAborted
            last = min(first + layers_a_call, len(self._layers))
            self._run_layers(first, last, spans, x, cosine, sine, wanted, logits)
        for feed in feeds:
            feed.slab.appended(feed.token_ids)
        return logits[:, : self._vocabulary]

    def _run_layers(
        self,
        first: int,
        last: int,
        spans: _Spans,
        x: torch.Tensor,
        cosine: torch.Tensor,
        sine: torch.Tensor,
        wanted: list[int],
        logits: torch.Tensor,
    ) -> None:
        failed = self._kernels.keepwarm_step(
            *(ctypes.byref(self.struct), first, last, spans.structs, spans.count, x.shape[0]),
            *(x.data_ptr(), cosine.data_ptr(), sine.data_ptr(), (ctypes.c_int32 * len(wanted))(*wanted), len(wanted)),
            *(logits.data_ptr(), torch.get_num_threads()),
        )
        if failed == _WRONG_SIZES:
            raise RuntimeError("the sizes of a step do not fit together")
        if failed:
            raise torch.OutOfMemoryError("out of memory")

    def _check(self, slab: KVSlab) -> None:
        """Raises `RuntimeError` for a slab of another shape, because the kernels trust its pointers."""
        layers, kv_heads, dim = self._slab_shape
        keys, values = slab.keys[-1], slab.values[-1]
        is_right = len(slab.keys) == len(slab.values) == layers and keys.dtype in (torch.float32, torch.float16)
        if not is_right or any((t.shape[0], t.shape[2]) != (kv_heads, dim) for t in (keys, values)):
            raise RuntimeError("a slab is not of this model's shape")


class _Layer:
    """One layer's weights, kept alive for the structs that point to them."""

    def __init__(self, layer: Any) -> None:
        for name, module in projections_of(layer).items():
            setattr(self, name, _matrix(module))
        norms = norms_of(layer)
        every = (norms.before_attention, norms.before_mlp, norms.after_attention, norms.after_mlp)
        self._norms = [None if norm is None else norm_factors(norm) for norm in (*every, *head_norms_of(layer))]

        for first, *others in _READ_TOGETHER:
            for other in others:  # the same numbers, and to the kernels the same address says so
                getattr(self, other).struct.order = getattr(self, first).struct.order

    query: NativeMatrix
    key: NativeMatrix
    value: NativeMatrix
    output: NativeMatrix
    gate: NativeMatrix
    up: NativeMatrix
    down: NativeMatrix

    def struct(self, has_window: bool, rope: int) -> LayerStruct:
        matrices: list[MatrixStruct] = [getattr(self, name).struct for name in PROJECTIONS]
        norms = [None if norm is None else norm.data_ptr() for norm in self._norms]
        return LayerStruct(*matrices, *norms, has_window, rope)


class _Spans:
    """Which rows belong to which slab, as structs for the kernels."""

    def __init__(self, count: int) -> None:
        self.count = 0
        self.structs = (SpanStruct * count)()
        self._pointers: list[Any] = []

    def add(self, slab: KVSlab, start: int, tokens: int, past_tokens: int) -> None:
        pointers = [
            (ctypes.c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])
            for tensors in (slab.keys, slab.values)
        ]
        self._pointers += pointers  # kept alive here, because a ctypes struct does not keep what it points to
        self.structs[self.count] = SpanStruct(
            *pointers, slab.capacity_tokens, start, tokens, past_tokens, slab.keys[0].dtype == torch.float16
        )
        self.count += 1


class _Positions:
    """Rotary tables for the positions seen so far, computed by the model's own module."""

    def __init__(self, rotary: torch.nn.Module, config: Any) -> None:
        self._rotary, self._config = rotary, config
        self._cosine = self._sine = torch.empty(1, 0, 0)

    def at(self, positions: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, float32 `[kinds, len(positions), head_dim]` each (`rope_kinds`)."""
        last = max(positions)
        if last >= self._cosine.shape[1]:
            count = max(_TABLE_TOKENS, 1 << last.bit_length())
            self._cosine, self._sine = rotary_tables(self._rotary, self._config, torch.arange(count)[None])
        rows = torch.tensor(positions)
        return self._cosine.index_select(1, rows), self._sine.index_select(1, rows)


def _matrix(module: torch.nn.Module) -> NativeMatrix:
    assert isinstance(module, NativeLinear)
    assert module.matrix is not None
    return module.matrix
