"""Runs quantised layers in our own CPU kernels, on the codes that the checkpoint or bitsandbytes made."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from model_runtime.architecture.decoder_layout import has_common_layout
from model_runtime.architecture.shape_check import check_decoder_shapes
from model_runtime.interface.errors import ModelLoadError
from model_runtime.weights.coded.coded_rows import Coded
from model_runtime.weights.coded.numbers import dequantised_rows
from model_runtime.weights.native_experts import MatrixPair, NativeExperts
from model_runtime.weights.native_matrix import COLUMNS, NativeEmbedding, NativeLinear, NativeMatrix
from model_runtime.weights.own_layers.mixture import StoredMixture
from model_runtime.weights.own_layers.mxfp4_experts import OwnExperts, StoredExperts, plain_experts
from model_runtime.weights.own_layers.quantizer import StoredLinear, names_of
from model_runtime.weights.own_layers.readers import coded_of, reader_of


def has_coded_layers(model: PreTrainedModel) -> bool:
    """Whether any layer has few bits that our own kernels could run."""
    return any(reader_of(module) is not None or isinstance(module, StoredExperts) for module in model.modules())


def use_own_kernels(model: PreTrainedModel, kernels: ctypes.CDLL) -> None:
    """Replaces the layers with few bits, and if there are any the head and the embeddings, whose numbers keep 16 bits
    if they came with 16. Layers that the kernels cannot read stay what they are: bitsandbytes' with blocks that cross
    the ends of rows, FP8 with blocks of odd sizes; `dequantise_stored` is for those of `StoredLinear`. A layer's old
    weights are freed before the next one is packed."""
    for name in names_of(model, StoredMixture):
        model.set_submodule(name, _native_experts(model, name, kernels))
    for name in [name for name, module in model.named_modules() if reader_of(module) is not None]:
        layer: Any = model.get_submodule(name)
        coded = coded_of(model, name, layer)
        if coded is not None and coded.shape[1] % COLUMNS == 0:
            bias = None if layer.bias is None else layer.bias.detach().float()
            model.set_submodule(name, NativeLinear(_packed(model, name, coded, bias, kernels)))
    for name in names_of(model, StoredExperts):
        try:
            model.set_submodule(name, OwnExperts(model.get_submodule(name), kernels))
        except ValueError as error:
            raise ModelLoadError(f"{type(model).__name__} cannot be used: in {name}, {error}.") from error
    _replace_ends(model, kernels)
    if has_common_layout(model):
        check_decoder_shapes(model)


def dequantise_stored(model: PreTrainedModel, dtype: torch.dtype, device: str) -> None:
    """Puts plain layers in the place of all `StoredLinear` and `StoredExperts`, one at a time. Raises
    `ModelLoadError`."""
    for name in names_of(model, StoredMixture):
        model.set_submodule(name, _plain_experts(model, name, dtype, device))
    for name in names_of(model, StoredLinear):
        layer: Any = model.get_submodule(name)
        weight = _dequantised(model, name, dtype).to(device)
        with torch.device("meta"):
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=layer.bias is not None)
        linear.weight = nn.Parameter(weight, requires_grad=False)
        if layer.bias is not None:
            linear.bias = nn.Parameter(layer.bias.detach().to(device=device, dtype=dtype), requires_grad=False)
        model.set_submodule(name, linear.eval())
    for name in names_of(model, StoredExperts):
        model.set_submodule(name, plain_experts(model.get_submodule(name), dtype, device))


def _native_experts(model: PreTrainedModel, name: str, kernels: ctypes.CDLL) -> NativeExperts:
    stored: Any = model.get_submodule(name)

    def native(below: str) -> NativeMatrix:
        layer: Any = stored.get_submodule(below)
        coded = coded_of(model, f"{name}.{below}", layer)
        assert coded is not None
        bias = None if layer.bias is None else layer.bias.detach().float()
        stored.set_submodule(below, nn.Module())  # its tensors are not needed any more
        return _packed(model, f"{name}.{below}", coded, bias, kernels)

    gate_up, down = list[MatrixPair](), list[NativeMatrix]()
    for gate, up, out in stored.names():
        gate_up.append(MatrixPair(native(gate), native(up)))
        down.append(native(out))
    return NativeExperts(stored.replaced[0], {"gate_up_proj": gate_up, "down_proj": down})


def _plain_experts(model: PreTrainedModel, name: str, dtype: torch.dtype, device: str) -> nn.Module:
    stored: Any = model.get_submodule(name)

    def plain(below: str) -> torch.Tensor:
        bias = stored.get_submodule(below).bias
        if bias is not None and bias.any():
            raise ModelLoadError(f"{type(model).__name__} cannot be used: {name}.{below} has a bias of its own.")
        return _dequantised(model, f"{name}.{below}", dtype)

    gate_up, down = list[torch.Tensor](), list[torch.Tensor]()
    for gate, up, out in stored.names():
        gate_up.append(torch.cat([plain(gate), plain(up)]).to(device))
        down.append(plain(out).to(device))
    experts: nn.Module = stored.plain(gate_up, down)
    return experts


def _dequantised(model: PreTrainedModel, name: str, dtype: torch.dtype) -> torch.Tensor:
    coded = coded_of(model, name, model.get_submodule(name))
    assert coded is not None
    return dequantised_rows(coded, dtype)


def _packed(
    model: PreTrainedModel, name: str, coded: Coded, bias: torch.Tensor | None, kernels: ctypes.CDLL
) -> NativeMatrix:
    try:
        return NativeMatrix(coded, bias, kernels)
    except ValueError as error:
        raise ModelLoadError(f"{type(model).__name__} cannot be used: in {name}, {error}.") from error


def _replace_ends(model: PreTrainedModel, kernels: ctypes.CDLL) -> None:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if type(head) is not nn.Linear or head.in_features % COLUMNS:
        return
    matrix = NativeMatrix(head.weight.detach(), None if head.bias is None else head.bias.detach(), kernels)
    is_tied = head.weight is getattr(embedding, "weight", None) and head.bias is None
    model.set_output_embeddings(NativeLinear(matrix))
    factor = getattr(embedding, "embed_scale", None)
    if type(embedding) is nn.Embedding or isinstance(factor, torch.Tensor):
        table = matrix if is_tied else NativeMatrix(embedding.weight.detach(), None, kernels)
        model.set_input_embeddings(
            NativeEmbedding(table, is_shared=is_tied, factor=1.0 if factor is None else float(factor))
        )
