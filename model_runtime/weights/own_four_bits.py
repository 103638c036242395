"""Runs bitsandbytes' 4-bit layers in our own CPU kernels, on the codes that bitsandbytes made."""

from __future__ import annotations

import ctypes

import torch
from torch import nn
from transformers import PreTrainedModel

from model_runtime.architecture.decoder_layout import has_common_layout
from model_runtime.architecture.shape_check import check_decoder_shapes
from model_runtime.weights.coded.four_bits import coded_four_bits
from model_runtime.weights.native_matrix import COLUMNS, NativeEmbedding, NativeLinear, NativeMatrix


def has_four_bits(model: PreTrainedModel) -> bool:
    """Whether any layer is bitsandbytes' with 4 bits."""
    return any(type(module).__name__ == "Linear4bit" for module in model.modules())


def use_own_kernels(model: PreTrainedModel, kernels: ctypes.CDLL) -> None:
    """Replaces the 4-bit layers, and if there are any the head and the embeddings, whose numbers keep 16 bits if they
    came with 16. Layers whose blocks cross the ends of rows stay bitsandbytes'. A layer's old weights are freed before
    the next one is packed."""
    for name in [name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"]:
        layer = model.get_submodule(name)
        coded = coded_four_bits(layer)
        if coded is not None:
            bias = None if layer.bias is None else layer.bias.detach().float()
            model.set_submodule(name, NativeLinear(NativeMatrix(coded, bias, kernels)))
    _replace_ends(model, kernels)
    if has_common_layout(model):
        check_decoder_shapes(model)


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
