"""What the settings of a compressed-tensors checkpoint ask for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Settings = Mapping[str, Any]
_LAYOUTS = {"pack-quantized", "int-quantized", "float-quantized", "naive-quantized"}
_LEAST_GROUP = 32
_ORDERED = ("group", "dynamic")  # two names of the order that needs the group of each column


def refusal(settings: Settings) -> str | None:
    """The setting that cannot be held in our own form, None if there is none."""
    sparse = settings.get("sparsity_config") or {}
    if sparse.get("format", "dense") != "dense":
        return f"the layout {sparse['format']}"
    if settings.get("transform_config"):
        return "weights that are transformed (transform_config)"
    if settings.get("quantization_status", "compressed") != "compressed":
        return f"weights that are not compressed yet (quantization_status {settings['quantization_status']})"
    if not _schemes(settings):
        return "no config_groups"
    return next((why for scheme in _schemes(settings) if (why := _scheme_refusal(scheme, settings))), None)


def rounded_activations(settings: Settings) -> str | None:
    """The integers to which the settings say that activations are rounded: "int8"; None if to none."""
    for scheme in _schemes(settings):
        inputs = scheme.get("input_activations")
        if isinstance(inputs, Mapping) and str(inputs.get("type", "int")) == "int":
            return f"int{inputs.get('num_bits', 8)}"
    return None


def note(settings: Settings) -> str | None:
    """A sentence about activations that are not rounded as the settings say."""
    if all(scheme.get("input_activations") is None for scheme in _schemes(settings)):
        return None
    return "The checkpoint's settings would round activations to 8 bits; that is not done here."


def kinds(settings: Settings) -> list[str]:
    """ "4-bit", "8-bit FP8"..., one for each kind of weights."""
    return sorted(
        {_kind(scheme["weights"]) for scheme in _schemes(settings) if isinstance(scheme.get("weights"), Mapping)}
    )


def blocks(settings: Settings) -> Iterator[tuple[int, int]]:
    """The sizes of blocks, rows and columns, that have a scale each."""
    for scheme in _schemes(settings):
        weights = scheme.get("weights")
        size = weights.get("block_structure") if isinstance(weights, Mapping) else None
        if isinstance(size, str):
            size = [int(one) for one in size.split("x") if one.isdigit()]
        if isinstance(size, list) and len(size) == 2:
            yield int(size[0]), int(size[1])


def needed(settings: Settings) -> Iterator[tuple[str, str]]:
    """The tensors that every quantised matrix must have by the settings, each with the setting that says so."""
    weights = [one["weights"] for one in _schemes(settings) if isinstance(one.get("weights"), Mapping)]
    if weights and all(str(one.get("actorder")).lower() in _ORDERED for one in weights):
        yield "weight_g_idx", "actorder"
    if weights and all(one.get("symmetric") is False for one in weights):
        yield "weight_zero_point", "symmetric: false"


def _schemes(settings: Settings) -> list[Settings]:
    groups = settings.get("config_groups")
    return [one for one in groups.values() if isinstance(one, Mapping)] if isinstance(groups, Mapping) else []


def _scheme_refusal(scheme: Settings, settings: Settings) -> str | None:
    layout = str(scheme.get("format") or settings.get("format"))
    weights = scheme.get("weights")
    if not isinstance(weights, Mapping):
        return "a config group without weights"
    if layout not in _LAYOUTS:
        return f"the layout {layout}"
    bits, kind = weights.get("num_bits", 8), weights.get("type", "int")
    if (kind, bits) not in (("int", 4), ("int", 8), ("float", 8)) or (bits == 4 and layout != "pack-quantized"):
        return f"{_kind(weights)} weights in the layout {layout}"
    if scheme.get("output_activations") is not None:
        return "rounded outputs (output_activations)"
    group = weights.get("group_size")
    if isinstance(group, int) and group > 0 and group % _LEAST_GROUP:
        return f"groups of {group} columns"
    return None


def _kind(weights: Settings) -> str:
    bits, is_float = weights.get("num_bits", 8), weights.get("type", "int") == "float"
    return f"{bits}-bit FP{bits}" if is_float else f"{bits}-bit"
