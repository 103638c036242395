"""A small copy of a model: the same class and config, with narrow layers, random weights and near boundaries.

Reading past a window of 4,096 tokens would take minutes with a large model on a CPU; its copy needs a moment, and runs
the same code with the same settings.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from model_runtime.forward.probing.boundaries import numbers_of

NEAREST, SPACING = 24, 13  # where the boundaries of a copy are, in tokens
_VOCABULARY = 97
_MOST_WEIGHTS = 50_000_000  # 200 MB
_NARROW = {
    "intermediate_size": 32,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "intermediate_size_mlp": 32,
    "ffn_hidden_size": 32,
    "n_inner": 32,
}


def small_copies(model: PreTrainedModel, boundaries: list[int]) -> Iterator[PreTrainedModel]:
    """Copies in float32 on the CPU, the smallest first: some classes need all their layers, or all their heads. Reading
    `length_for(boundaries)` tokens passes all their boundaries. None for a class that cannot be built so."""
    for has_few_heads, has_few_layers in ((True, True), (True, False), (False, True)):
        small = _copy(model, boundaries, has_few_heads, has_few_layers)
        if small is not None:
            yield small


def _copy(
    model: PreTrainedModel, boundaries: list[int], has_few_heads: bool, has_few_layers: bool
) -> PreTrainedModel | None:
    try:
        text = model.config.get_text_config()
        own = type(model)
        if text is not model.config:
            own = MODEL_FOR_CAUSAL_LM_MAPPING[type(text)]
        config = _narrowed(text, boundaries, has_few_heads, has_few_layers)
        with torch.device("meta"):
            weights = sum(parameter.numel() for parameter in own(config).parameters())
        if weights > _MOST_WEIGHTS:
            return None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(11)
            small: PreTrainedModel = own(config).to(torch.float32).eval()
            _spread(small)
    except Exception:  # any class may have rules of its own; the model itself is read then
        return None
    return small


def length_for(boundaries: list[int]) -> int:
    """How many tokens pass all boundaries of a copy, twice the nearest one included."""
    return max(NEAREST + SPACING * (len(boundaries) + 1), 2 * NEAREST + SPACING)


def _narrowed(
    config: PreTrainedConfig, boundaries: list[int], has_few_heads: bool, has_few_layers: bool
) -> PreTrainedConfig:
    """The config with few narrow layers, of all kinds, and its boundaries in the same order but near."""
    settings: dict[str, Any] = copy.deepcopy(config.to_dict())
    near = {boundary: NEAREST + SPACING * place for place, boundary in enumerate(boundaries)}
    for path, number in list(numbers_of(settings)):
        if number in near:
            inner = settings
            for name in path[:-1]:
                inner = inner[name]
            inner[path[-1]] = near[number]
    settings.update({name: _VOCABULARY for name in settings if name.startswith("vocab_size")})
    settings.update({name: size for name, size in _NARROW.items() if isinstance(settings.get(name), int)})
    settings.update({name: 0 for name in settings if name.endswith("token_id") and isinstance(settings[name], int)})
    names = getattr(config, "attribute_map", {})
    if has_few_heads:
        _narrow_heads(settings)
    if has_few_layers:
        _cut_layers(settings, names.get("num_hidden_layers", "num_hidden_layers"))
    settings.pop("quantization_config", None)
    settings.pop("dtype", None)
    return type(config).from_dict(settings)


def _narrow_heads(settings: dict[str, Any]) -> None:
    """Two key heads at most, and two query heads for each if the model shares them, as wide as they were."""
    heads = int(settings["num_attention_heads"])
    kv_heads = int(settings.get("num_key_value_heads") or heads)
    width = settings.get("head_dim") or int(settings["hidden_size"]) // heads
    few = min(2, kv_heads)
    settings["num_attention_heads"] = few * min(2, heads // kv_heads)
    if "num_key_value_heads" in settings:
        settings["num_key_value_heads"] = few
    settings["hidden_size"] = width * settings["num_attention_heads"]


def _cut_layers(settings: dict[str, Any], name_of_layers: str) -> None:
    """Keeps the first layers, as many as hold every kind that the config lists."""
    layers = int(settings[name_of_layers])
    lists = {name: v for name, v in settings.items() if isinstance(v, list) and len(v) == layers}
    kinds = list(zip(*lists.values(), strict=True)) if lists else []
    kept = 2
    for count in range(1, layers + 1):
        if set(map(str, kinds[:count])) == set(map(str, kinds)):
            kept = max(2, count)
            break
    kept = min(kept, layers)
    settings[name_of_layers] = kept
    settings.update({name: values[:kept] for name, values in lists.items()})


def _spread(model: PreTrainedModel) -> None:
    """Weights large enough that a wrong key changes the logits."""
    for parameter in model.parameters():
        if parameter.dim() > 1 or not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.1)
