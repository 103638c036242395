"""A small copy of a model: the same class and config, with narrow layers, random weights and near boundaries.

Reading past a window of 4,096 tokens would take minutes with a large model on a CPU; its copy needs a moment, and runs
the same code with the same settings.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from model_runtime.forward.probing.boundaries import numbers_of, own_names
from model_runtime.forward.probing.unread_parts import unread_parts

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
    "ffn_dim": 32,
}
_HEADS = re.compile(r"(^|_)num_attention_heads$")
_KEY_HEADS = re.compile(r"num_(global_)?(key_value|kv)_heads$")
_SHARED_LAYERS, _PER_LAYER = "num_kv_shared_layers", "per_layer_config"


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
        whole, text = model.config, model.config.get_text_config()
        config = _narrowed(text, boundaries, has_few_heads, has_few_layers)
        own: Any = type(model) if text is whole else MODEL_FOR_CAUSAL_LM_MAPPING.get(type(text), None)
        if own is None:  # its text model has no class of its own
            own, config = type(model), _with_text(whole, config)
        small = _built(own, config)
    except Exception:  # any class may have rules of its own; the model itself is read then
        return None
    return small


def _with_text(config: PreTrainedConfig, text: PreTrainedConfig) -> PreTrainedConfig:
    """A composite config with another text part."""
    own = config.get_text_config()
    changed = copy.deepcopy(config)
    setattr(changed, next(name for name in config.sub_configs if getattr(config, name) is own), text)
    return changed


def _built(own: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel | None:
    with torch.device("meta"):
        skeleton = own(copy.deepcopy(config))
    unread = unread_parts(skeleton) if _weights_of(skeleton) > _MOST_WEIGHTS else []
    if _weights_of(skeleton) - sum(_weights_of(skeleton.get_submodule(name)) for name in unread) > _MOST_WEIGHTS:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        with _without_weights() if unread else contextlib.nullcontext():
            small = own(config).to(torch.float32).eval()
        for name in unread:
            parent, _, child = name.rpartition(".")
            setattr(small.get_submodule(parent), child, torch.nn.Module())
        _fill(small)
        _spread(small)
    return small


def _without_weights() -> contextlib.AbstractContextManager[None]:
    from accelerate import init_empty_weights  # the GPU's benchmarks run without it

    return init_empty_weights()  # type: ignore[no-any-return]


def _weights_of(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def length_for(boundaries: list[int]) -> int:
    """How many tokens pass all boundaries of a copy, twice the nearest one included."""
    return max(NEAREST + SPACING * (len(boundaries) + 1), 2 * NEAREST + SPACING)


def _narrowed(
    config: PreTrainedConfig, boundaries: list[int], has_few_heads: bool, has_few_layers: bool
) -> PreTrainedConfig:
    """The config with few narrow layers, of all kinds, and its boundaries in the same order but near."""
    settings: dict[str, Any] = copy.deepcopy(config.to_dict())
    near = {boundary: NEAREST + SPACING * place for place, boundary in enumerate(boundaries)}
    for path, number in list(numbers_of(settings, own_names(config))):
        if number in near:
            inner: Any = settings
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = near[number]
    settings.update({name: _VOCABULARY for name in settings if name.startswith("vocab_size")})
    settings.update({name: _sized(settings[name], size) for name, size in _NARROW.items() if name in settings})
    settings.update({name: 0 for name in settings if name.endswith("token_id") and isinstance(settings[name], int)})
    names = getattr(config, "attribute_map", {})
    if has_few_heads:
        _narrow_heads(settings, names.get("num_attention_heads", "num_attention_heads"), names)
    if has_few_layers:
        _cut_layers(settings, names.get("num_hidden_layers", "num_hidden_layers"))
    settings.pop("quantization_config", None)
    settings.pop("dtype", None)
    return type(config).from_dict(settings)


def _sized(value: Any, size: int) -> Any:
    """`size` for a whole number, and for each of a list of them: Gemma 3n lists its layers' widths."""
    if isinstance(value, list):
        return [_sized(one, size) for one in value]
    return size if isinstance(value, int) and not isinstance(value, bool) else value


def _narrow_heads(settings: dict[str, Any], name_of_heads: str, names: Mapping[str, str]) -> None:
    """Two key heads at most, and two query heads for each if the model shares them, as wide as they were."""
    heads = int(settings[name_of_heads])
    of_keys = [name for name in settings if _KEY_HEADS.search(name) and isinstance(settings[name], int)]
    kv_heads = min((int(settings[name]) for name in of_keys), default=heads)
    hidden = names.get("hidden_size", "hidden_size")
    width = settings.get("head_dim") or int(settings[hidden]) // heads
    few = min(2, kv_heads) * min(2, heads // kv_heads)
    for own in (settings, *_own_settings(settings).values()):
        own.update({name: min(2, few, int(v)) for name, v in own.items() if _KEY_HEADS.search(name) and v})
    settings.update({name: few for name in settings if _HEADS.search(name) and isinstance(settings[name], int)})
    settings[name_of_heads] = few
    settings[hidden] = width * few


def _cut_layers(settings: dict[str, Any], name_of_layers: str) -> None:
    """Keeps one layer of every kind that the config lists, and two at least. The last layers of Gemma 3n and 4 read
    other layers' keys; they are kinds of their own."""
    layers = int(settings[name_of_layers])
    shared = int(settings.get(_SHARED_LAYERS) or 0)
    lists = {name: v for name, v in settings.items() if isinstance(v, list) and len(v) == layers}
    numbers = [name for name, values in lists.items() if values == list(range(layers))]  # "all layers", as in Llama 4
    lists = {name: values for name, values in lists.items() if name not in numbers}
    own = _own_settings(settings)
    rows = enumerate(zip(*lists.values(), strict=True))
    kinds = [str((layer >= layers - shared, own.get(layer), *row)) for layer, row in rows]
    kept = sorted({kind: layer for layer, kind in reversed(list(enumerate(kinds)))}.values())
    if len(kept) < 2:
        kept = list(range(min(2, layers)))
    settings[name_of_layers] = len(kept)
    settings.update({name: [values[layer] for layer in kept] for name, values in lists.items()})
    settings.update({name: list(range(len(kept))) for name in numbers})
    if shared:
        settings[_SHARED_LAYERS] = sum(layer >= layers - shared for layer in kept)
    if own:
        settings[_PER_LAYER] = {place: own[layer] for place, layer in enumerate(kept) if layer in own}


def _own_settings(settings: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """What single layers have otherwise, by their numbers: the widths of heads in Gemma 4."""
    return {int(layer): own for layer, own in (settings.get(_PER_LAYER) or {}).items()}


def _fill(model: PreTrainedModel) -> None:
    """Gives weights that have no memory some: ones to norms, zeros to the others, which `_spread` changes."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                make = torch.ones if name == "weight" and parameter.dim() == 1 else torch.zeros
                setattr(module, name, torch.nn.Parameter(make(parameter.shape), requires_grad=False))


def _spread(model: PreTrainedModel) -> None:
    """Weights large enough that a wrong key changes the logits."""
    for parameter in model.parameters():
        if parameter.dim() > 1 or not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.1)
