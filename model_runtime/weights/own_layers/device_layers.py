"""Puts layers that keep a checkpoint's bits on a GPU in the place of those that hold its tensors."""

from __future__ import annotations

from functools import partial
from typing import Any

from transformers import PreTrainedModel
from transformers.integrations.finegrained_fp8 import FP8Linear

from model_runtime.weights.coded.numbers import rows_as_numbers
from model_runtime.weights.native_matrix import COLUMNS
from model_runtime.weights.own_layers.layer_maker import LayerMaker
from model_runtime.weights.own_layers.mixture import StoredMixture
from model_runtime.weights.own_layers.quantizer import StoredLinear, names_of
from model_runtime.weights.own_layers.readers import coded_of

_KINDS = (StoredLinear, FP8Linear)


def has_layers_to_keep(model: PreTrainedModel) -> bool:
    """Whether any layer holds tensors of a format of which layers keep their bits."""
    return any(isinstance(module, _KINDS) for module in model.modules())


def keep_bits(model: PreTrainedModel, maker: LayerMaker, format_name: str) -> None:
    """Replaces the linear layers for which `maker` makes one. The others stay what they are, and so do experts. Raises
    `ModelLoadError` for tensors that do not fit together."""
    experts = tuple(f"{name}." for name in names_of(model, StoredMixture))
    for name in [name for name, module in model.named_modules() if isinstance(module, _KINDS)]:
        if name.startswith(experts):
            continue
        layer: Any = model.get_submodule(name)
        coded = coded_of(model, name, layer)
        if coded is None or coded.shape[1] % COLUMNS:
            continue  # odd sizes are no reason against the others of its format
        bias = None if layer.bias is None else layer.bias.detach()
        made = maker.linear(format_name, coded, bias, partial(rows_as_numbers, coded))
        if made is not None:
            model.set_submodule(name, made)
