"""The label that says at how many bits a checkpoint's weights are stored and run."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.finegrained_fp8 import FP8Experts, FP8Linear

from model_runtime.weights.checkpoint_formats.stored_format import StoredFormat
from model_runtime.weights.coded.coded_rows import Kind
from model_runtime.weights.native_experts import NativeExperts
from model_runtime.weights.native_matrix import NativeLinear, NativeMatrix
from model_runtime.weights.own_layers.mxfp4_experts import OwnExperts
from model_runtime.weights.quantization import Precision, dtype_name

_BITSANDBYTES = {"nf4": "4-bit NF4 (bitsandbytes)", "int8": "8-bit (bitsandbytes)"}
_ON_A_GPU = "CodedLinear"  # a layer of `forward`, which is above this package
_LEAST_SHARE = 0.01  # a smaller share of other weights is not worth a word: norms, routers


def bits_label(model: PreTrainedModel, precision: Precision, stored: StoredFormat | None) -> str:
    """ "4-bit NF4 (bitsandbytes)", "8-bit FP8 as shipped, multiplied in float32"... with the share of the layers'
    weights that have other bits: bitsandbytes quantises matrices, and leaves the fused experts of a layer as they are.
    Embeddings and the output head are not counted."""
    dtype = dtype_name(precision.compute_dtype)
    if stored is None:
        label = _BITSANDBYTES.get(precision.mode)
        return dtype if label is None else label + _rest(model, dtype)
    if precision.mode == "none":
        return f"{dtype} (from {stored.name})"
    runs = f", multiplied in {dtype}" if "FP8" in stored.name or stored.is_fp8 else ""
    return f"{stored.name} as shipped{runs}" + _rest(model, dtype)


def gguf_label(model: PreTrainedModel, name: str, dtype: str = "float32") -> str:
    """ "4-bit (Q4_K_M as shipped)" for a model whose matrices keep their bits, with the share of the layers' weights in
    `dtype`; `name` is that of the file's types. "float32 (from Q4_K)" when no layer has kept its bits."""
    layers = [module for module in model.modules() if module is not model.get_output_embeddings()]
    kept = (module.matrix for module in layers if isinstance(module, NativeLinear))
    if not any(map(_has_few_bits, kept)) and not any(type(module).__name__ == _ON_A_GPU for module in layers):
        return f"{dtype} (from {name})"
    bits = re.search(r"\d+", name)
    return f"{bits[0] if bits else '?'}-bit ({name} as shipped)" + _rest(model, dtype)


def _has_few_bits(matrix: NativeMatrix | None) -> bool:
    """Whether it lies in memory with the file's own bits: not as float32, and not as the float16 that some files'
    values fit into when they are de-quantised."""
    return matrix is not None and matrix.kind is not Kind.SINGLE and not matrix.is_dequantised


def _rest(model: PreTrainedModel, dtype: str) -> str:
    few, all_weights = 0, 0
    for weights, is_few in _layer_weights(model):
        few += weights if is_few else 0
        all_weights += weights
    share = 1 - few / all_weights if few else 0.0
    return f"; {share:.0%} of the layers' weights in {dtype}" if share > _LEAST_SHARE else ""


def _layer_weights(model: PreTrainedModel) -> Iterator[tuple[int, bool]]:
    """Of every matrix of the layers: its weights, and whether it is quantised. Only for layers that are known."""
    outside = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    for module in model.modules():
        if id(module) in outside or isinstance(module, nn.Embedding):
            continue
        kind = type(module).__name__
        if isinstance(module, NativeLinear):
            yield module.in_features * module.out_features, module.matrix is None or _has_few_bits(module.matrix)
        elif isinstance(module, NativeExperts):
            yield from ((matrix.rows * matrix.columns, _has_few_bits(matrix)) for matrix in module.every_matrix())
        elif kind in ("Linear4bit", "Linear8bitLt", _ON_A_GPU):
            yield int(module.in_features) * int(module.out_features), True
        elif isinstance(module, OwnExperts):
            yield module.weights, True
        elif isinstance(module, (FP8Linear, FP8Experts)):
            yield from ((p.numel(), True) for p in module.parameters(recurse=False) if p.element_size() == 1)
        else:
            yield from ((p.numel(), False) for p in module.parameters(recurse=False) if p.ndim > 1)
