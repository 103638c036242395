"""Reads the matrix of a quantised layer as codes and scales, whoever made the layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.finegrained_fp8 import FP8Linear

from model_runtime.interface.errors import ModelLoadError
from model_runtime.weights.coded.coded_rows import Coded
from model_runtime.weights.coded.eights import coded_fp8, coded_llm_int8
from model_runtime.weights.coded.four_bits import coded_four_bits
from model_runtime.weights.own_layers.quantizer import StoredLinear


def reader_of(module: nn.Module) -> Callable[[Any], Coded | None] | None:
    """What makes codes and scales of a layer; None for one that has no few bits."""
    if isinstance(module, StoredLinear):
        return StoredLinear.coded
    if isinstance(module, FP8Linear):
        return _fp8
    return _BITSANDBYTES.get(type(module).__name__)


def coded_of(model: PreTrainedModel, name: str, layer: nn.Module) -> Coded | None:
    """The matrix of the layer `name`; None for what bitsandbytes or FP8 of transformers must run. Raises
    `ModelLoadError` for a `StoredLinear` that cannot be held."""
    reader = reader_of(layer)
    assert reader is not None
    try:
        return reader(layer)
    except ValueError as error:
        if not isinstance(layer, StoredLinear):
            return None
        raise ModelLoadError(f"{type(model).__name__} cannot be used: {name} has {error}.") from error
    except (ArithmeticError, LookupError, RuntimeError) as error:  # tensors of other dimensions than the format has
        sentence = f"{type(model).__name__} cannot be used: {name} has tensors or settings that do not fit together."
        raise ModelLoadError(sentence) from error


def _fp8(layer: Any) -> Coded | None:
    if layer.weight.element_size() > 1:
        return None
    block = None if layer.block_size is None else (int(layer.block_size[0]), int(layer.block_size[1]))
    return coded_fp8(layer.weight.detach().cpu(), layer.weight_scale_inv.detach().cpu(), block)


def _llm_int8(layer: Any) -> Coded | None:
    largest = getattr(layer.weight, "SCB", None)
    if largest is None or layer.weight.dtype != torch.int8:
        return None
    return coded_llm_int8(layer.weight.detach(), largest.detach())


_BITSANDBYTES: dict[str, Callable[[Any], Coded | None]] = {"Linear4bit": coded_four_bits, "Linear8bitLt": _llm_int8}
