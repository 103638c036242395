"""Builds a transformers model from stored blocks: at the shipped bits on a CPU, or de-quantised on any device."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import GENERATION_CONFIG_NAME

from model_runtime.architecture.config_check import check_config
from model_runtime.architecture.decoder_layout import has_common_layout
from model_runtime.architecture.shape_check import check_decoder_shapes
from model_runtime.native import heap
from model_runtime.weights.coded.coded_rows import Coded, Kind
from model_runtime.weights.coded.ggml_formats import FORMATS, coded_ggml
from model_runtime.weights.linear_int4 import Int4Linear, Int4Matrix, KernelPlan, Scratch, fits_packed_kernel
from model_runtime.weights.linear_stored import CastLinear, HalfHead, Int8Embedding, UpcastEmbedding
from model_runtime.weights.native_experts import (
    PROJECTIONS,
    NativeExperts,
    can_be_native,
    holds_experts,
    native_projection,
)
from model_runtime.weights.native_matrix import COLUMNS, NativeEmbedding, NativeLinear, NativeMatrix
from model_runtime.weights.own_layers.layer_maker import LayerMaker
from model_runtime.weights.q4_blocks import Q4Blocks, Q8Blocks
from model_runtime.weights.stored_weights import Packable, Stored, StoredWeights, dense, halved, numbers_in, rows_of

Progress = Callable[[int], None]
_EMBEDDINGS = "model.embed_tokens.weight"


def build_dequantised(
    directory: Path,
    dtype: torch.dtype,
    device: str,
    progress: Progress = lambda _: None,
    maker: LayerMaker | None = None,
) -> PreTrainedModel:
    """A model with its weights in `dtype`: the file's values, rounded once if `dtype` has 16 bits; but for the linear
    layers with blocks that `maker` makes. `progress`, here and below, is called with the bytes of the file that were
    read."""
    weights = StoredWeights(directory, progress)
    model = _skeleton(directory, dtype)
    made = set[str]()
    if maker is not None:
        made.update(_set_coded(model, weights, maker))
        made.update(_set_coded_ends(model, weights, maker))
    for name in weights.names:
        if name in made:
            continue
        _set_parameter(model, name, _numbers(model, name, weights, dtype).to(device))
    if isinstance(model.get_input_embeddings(), nn.Embedding):
        model.tie_weights()
    return _finish(model).to(device)


def _set_coded(model: PreTrainedModel, weights: StoredWeights, maker: LayerMaker) -> Iterator[str]:
    """Puts layers that keep their bits in the place of linear ones. Yields the names of the parameters that it used."""
    for module in [name for name, one in model.named_modules() if type(one) in (nn.Linear, Conv1D)]:
        name, bias_name = f"{module}.weight", f"{module}.bias"
        if name not in weights.names or not weights.has_blocks(name):
            continue
        stored = weights.read(name)
        coded = None if isinstance(stored, torch.Tensor) else coded_ggml(stored)
        if coded is None:
            continue
        bias = dense(weights.read(bias_name)).float() if bias_name in weights.names else None
        layer = maker.linear(_kind_of(weights, name, coded), coded, bias, _numbers_of(stored))
        if layer is not None:
            model.set_submodule(module, layer)
            yield name
            if bias is not None:
                yield bias_name
        weights.let_go()


def _set_coded_ends(model: PreTrainedModel, weights: StoredWeights, maker: LayerMaker) -> Iterator[str]:
    """The same for the embeddings, and for a head that shares their matrix."""
    names = {id(module): f"{name}.weight" for name, module in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    name, is_tied = names[id(embedding)], names.get(id(head), "") not in weights.names
    factor = getattr(embedding, "embed_scale", None)  # Gemma's embeddings
    is_known = type(embedding) is nn.Embedding or isinstance(factor, torch.Tensor)
    if not is_known or (is_tied and (type(head) is not nn.Linear or head.bias is not None)):
        return
    stored = weights.read(name)
    coded = None if isinstance(stored, torch.Tensor) else coded_ggml(stored)
    if coded is None:
        return
    kind, times = _kind_of(weights, name, coded), None if factor is None else float(factor)
    made = maker.ends(kind, coded, _numbers_of(stored), has_head=is_tied, factor=times)
    weights.let_go()
    if made is None:
        return
    model.set_input_embeddings(made[0])
    if made[1] is not None:
        model.set_output_embeddings(made[1])
        model.config.get_text_config().tie_word_embeddings = False
    yield name


def _kind_of(weights: StoredWeights, name: str, coded: Coded) -> str:
    """The type of a parameter with blocks: Q4_0, Q4_1 and Q8_0 are kept without their names."""
    cached = "Q8_0" if coded.grid.kind is Kind.Q8 else "Q4_0" if coded.grid.offset else "Q4_1"
    return weights.ggml_kind(name) or cached


def _numbers_of(stored: Stored) -> Callable[[int, int], torch.Tensor]:
    return lambda start, end: dense(rows_of(stored, start, end))


def build_native(directory: Path, kernels: ctypes.CDLL, progress: Progress = lambda _: None) -> PreTrainedModel:
    """A CPU model with float32 activations. The matrices of its linear layers, its embeddings and its head run in our
    own kernels at the bits they were shipped with; everything else is de-quantised to float32. Embeddings that are also
    the head are in memory once."""
    weights = StoredWeights(directory, progress)
    model = _skeleton(directory, torch.float32)
    left = set(weights.names)
    left -= set(_set_ends(model, weights, kernels))
    linear = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    for name in linear:
        weight, bias = f"{name}.weight", f"{name}.bias"
        if weight in left and _fits(model.get_submodule(name), weights, weight):
            numbers = dense(weights.read(bias)).float() if bias in left else None
            matrix = NativeMatrix(weights.read(weight), numbers, kernels, weights.let_go)
            model.set_submodule(name, NativeLinear(matrix))
            left -= {weight, bias}
            heap.give_back()  # what the next one needs would not fit into the holes between tiles
    left -= set(_set_experts(model, weights, kernels))
    for name in left:
        _set_parameter(model, name, _numbers(model, name, weights, torch.float32))
    if not isinstance(model.get_input_embeddings(), NativeEmbedding):
        model.tie_weights()
    _finish(model)
    if has_common_layout(model):
        check_decoder_shapes(model)
    return model


def _fits(module: Any, weights: StoredWeights, name: str) -> bool:
    """Whether a native matrix can stand for the module's. GPT-2's `Conv1D` has its numbers the other way round, but not
    its blocks, in which outputs come first."""
    return weights.has_blocks(name) if isinstance(module, Conv1D) else int(module.in_features) % COLUMNS == 0


def _numbers(model: PreTrainedModel, name: str, weights: StoredWeights, dtype: torch.dtype) -> torch.Tensor:
    numbers = numbers_in(weights.read(name), dtype, weights.let_go)
    is_turned = weights.has_blocks(name) and isinstance(model.get_submodule(name.rpartition(".")[0]), Conv1D)
    return numbers.t().contiguous() if is_turned else numbers


def _set_ends(model: PreTrainedModel, weights: StoredWeights, kernels: ctypes.CDLL) -> Iterator[str]:
    """Puts embeddings and head on native matrices, where they have a kind that these can stand for. Yields the names of
    the parameters that it used."""
    names = {id(module): f"{name}.weight" for name, module in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    name, head_name = names[id(embedding)], names.get(id(head), "")
    is_tied = head_name not in weights.names
    factor = getattr(embedding, "embed_scale", None)  # Gemma's embeddings
    if not (type(embedding) is nn.Embedding or factor is not None) or embedding.embedding_dim % COLUMNS:
        return
    matrix = NativeMatrix(weights.read(name), None, kernels, weights.let_go)
    shared = is_tied and isinstance(head, nn.Linear) and head.bias is None
    if is_tied and not shared:
        return
    model.set_input_embeddings(
        NativeEmbedding(matrix, is_shared=shared, factor=1.0 if factor is None else float(factor))
    )
    yield name
    if shared:
        model.set_output_embeddings(NativeLinear(matrix))
        model.config.get_text_config().tie_word_embeddings = False


def _set_experts(model: PreTrainedModel, weights: StoredWeights, kernels: ctypes.CDLL) -> Iterator[str]:
    """Puts the experts of each layer on native matrices, where the file has both of their projections at bits that run.
    Yields the names of the parameters that it used."""
    for name in [name for name, module in model.named_modules() if can_be_native(module)]:
        names = {projection: f"{name}.{projection}" for projection in PROJECTIONS}
        if not all(one in weights.names and holds_experts(weights.read(one)) for one in names.values()):
            continue
        matrices = {key: native_projection(weights.read(one), kernels, weights.let_go) for key, one in names.items()}
        model.set_submodule(name, NativeExperts(model.get_submodule(name), matrices))
        heap.give_back()
        yield from names.values()


def dequantised_types(directory: Path, model: PreTrainedModel) -> dict[str, int]:
    """The types whose bits do not run in `model`, built by `build_native`, and how many of the file's tensors have
    each: those that no kernel has, and those of experts that compute in a way of their own."""
    weights, counts = StoredWeights(directory), dict[str, int]()
    for name in weights.names:
        kind = weights.ggml_kind(name)
        module = model.get_submodule(name.rpartition(".")[0])
        is_native = isinstance(module, (NativeLinear, NativeEmbedding)) and kind in FORMATS
        is_native |= isinstance(module, NativeExperts)
        if kind is not None and not is_native:
            counts[kind] = counts.get(kind, 0) + 1
    return counts


def build_packed(directory: Path, plan: KernelPlan, progress: Progress = lambda _: None) -> PreTrainedModel:
    """A CPU model with float32 activations for torch's kernels: matrices at 4 bits if they were shipped that way,
    embeddings as stored, norms in float32, a head of 16 bits."""
    weights = StoredWeights(directory, progress)
    model = _skeleton(directory, torch.float32)
    left = set(weights.names)
    head = "lm_head.weight" if "lm_head.weight" in left else _EMBEDDINGS
    embedding, scratch = model.get_input_embeddings(), Scratch()
    model.set_output_embeddings(HalfHead(dense(halved(weights.read(head))).float()))
    model.set_input_embeddings(_embedding(halved(weights.read(_EMBEDDINGS)), embedding))
    left -= {head, _EMBEDDINGS}
    linear = {name for name in left if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Linear)}
    for module in sorted({name.rpartition(".")[0] for name in linear}):
        bias = weights.read(f"{module}.bias") if f"{module}.bias" in left else None
        model.set_submodule(module, _linear(halved(weights.read(f"{module}.weight")), bias, plan, scratch))
        weights.let_go()
    for name in left - linear:
        _set_parameter(model, name, dense(weights.read(name)).to(torch.float32, copy=True))
    model.config.tie_word_embeddings = False
    _finish(model)
    if has_common_layout(model):
        check_decoder_shapes(model)
    return model


def _linear(stored: Packable, bias: Stored | None, plan: KernelPlan, scratch: Scratch) -> nn.Module:
    bias_numbers = None if bias is None else dense(bias).float()
    if isinstance(stored, Q4Blocks) and plan.packed and fits_packed_kernel(*stored.shape):
        return Int4Linear(Int4Matrix(stored), bias_numbers, plan, scratch)
    weight = dense(stored).to(plan.gemm_dtype)
    with torch.device("meta"):
        linear = CastLinear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias_numbers is not None:
        linear.bias = nn.Parameter(bias_numbers.to(plan.gemm_dtype), requires_grad=False)
    return linear


def _embedding(stored: Packable, replaced: nn.Module) -> nn.Module:
    if isinstance(stored, Q8Blocks):
        return Int8Embedding(Q8Blocks(stored.codes.clone(), stored.scale.clone()))
    table = stored.clone() if isinstance(stored, torch.Tensor) else dense(stored).to(torch.float16)
    with torch.device("meta"):
        embedding = UpcastEmbedding(table.shape[0], table.shape[1], padding_idx=getattr(replaced, "padding_idx", None))
    embedding.weight = nn.Parameter(table, requires_grad=False)
    return embedding


def _skeleton(directory: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model's modules without weights; rotary tables and other buffers are real."""
    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    check_config(config, directory.name)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    advice = directory / GENERATION_CONFIG_NAME
    if advice.exists():
        model.generation_config = GenerationConfig.from_dict(json.loads(advice.read_text(encoding="utf-8")))
    return model


def _set_parameter(model: PreTrainedModel, name: str, value: torch.Tensor) -> None:
    module, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(module), attribute, nn.Parameter(value, requires_grad=False))


def _finish(model: PreTrainedModel) -> PreTrainedModel:
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if missing:
        raise ValueError(f"The file has no weights for {', '.join(missing[:3])}.")
    return model.eval()
