"""Checks a config: no model can have some numbers, some contradict each other, and some transformers would ignore."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from transformers import PretrainedConfig

from model_runtime.architecture.ignored_settings import refuse_ignored_settings
from model_runtime.architecture.layer_settings import differs_by_layer, values_of
from model_runtime.architecture.setting_rules import (
    OF_MODULES,
    OF_TEXTS,
    Path,
    Rule,
    broken_rule,
    is_no_number,
    is_unknown_activation,
    settings_in,
    shown,
)
from model_runtime.interface.errors import ModelLoadError

MOST_CONTEXT_TOKENS = 1 << 24  # rotary positions are float32, which represents every integer only up to here
_LAYER_LISTS = ("layer_types", "mlp_layer_types", "no_rope_layers")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "top_k_experts", "moe_k", "moe_topk")
_COMMON_NAMES = ("num_attention_heads", "num_hidden_layers", "hidden_size", "num_key_value_heads", "vocab_size")


def check_config(config: PretrainedConfig, name: str) -> None:
    """Raises `ModelLoadError` that names the first setting which no model can have, and for settings that transformers
    would ignore. Of parts for images and sound, only what would not end or be no number is checked; what an
    architecture does not state is not checked."""
    text = config.get_text_config()
    why = next(_impossible(config, text), None) or next(_contradictions(text), None)
    if why:
        raise ModelLoadError(f"{name} cannot be used: {why}.")
    refuse_ignored_settings(text, name)


def declared_context_tokens(text_config: Any) -> int | None:
    """How many tokens the config says that the model holds; None if it does not say (BLOOM)."""
    for key in ("max_position_embeddings", "max_seq_len"):  # MPT's word for it
        value = getattr(text_config, key, None)
        if isinstance(value, int):
            return value
    return None


def _impossible(config: PretrainedConfig, text: Any) -> Iterator[str]:
    for path, value in settings_in(config.to_dict()):
        if is_no_number(path[-1], value):
            yield f"its {_name(path)} is {value}, which is not a number"
        yield from _broken(path, value, OF_MODULES)
        if is_unknown_activation(path[-1], value):
            yield f"its {_name(path)} is {shown(value)}, which is no activation function that transformers knows"
    for path, value in settings_in({key: v for key, v in text.to_dict().items() if key not in text.sub_configs}):
        if path[-1] == "sliding_window" and value == 0 and not getattr(text, "use_sliding_window", True):
            continue  # how Qwen2-MoE's config says that nothing slides
        yield from _broken(path, value, OF_TEXTS)
    for name in _COMMON_NAMES:  # of families that have words of their own
        for value in values_of(text, name):
            yield from _broken((name,), value, OF_TEXTS)


def _broken(path: Path, value: Any, rules: tuple[Rule, ...]) -> Iterator[str]:
    rule = broken_rule(path[-1], value, rules)
    if rule is not None:
        yield f"its {_name(path)} is {shown(value)}, and must be {rule.must_be}"


def _contradictions(text: Any) -> Iterator[str]:
    context = declared_context_tokens(text)
    if context is not None and context > MOST_CONTEXT_TOKENS:
        yield f"it says its context is {context:,} tokens long; at most {MOST_CONTEXT_TOKENS:,} are possible"
    for heads, kv_heads in _heads_of_layers(text):
        if isinstance(heads, int) and isinstance(kv_heads, int) and heads % kv_heads:
            yield f"{heads} heads cannot share {kv_heads} key heads (num_attention_heads, num_key_value_heads)"
    if not differs_by_layer(text):
        yield from _of_heads(text)
    layers = getattr(text, "num_hidden_layers", None)
    for name in _LAYER_LISTS:
        listed = getattr(text, name, None)
        if isinstance(listed, (list, tuple)) and isinstance(layers, int) and len(listed) != layers:
            yield f"its {name} lists {len(listed)} layers, and num_hidden_layers is {layers}"
    experts, chosen = _first(text, _EXPERTS), _first(text, _CHOSEN)
    if experts and chosen and chosen[1] > experts[1]:
        yield f"its {chosen[0]} is {chosen[1]}, and it has {experts[1]} experts ({experts[0]})"
    for rope in _rope_parameters(text):
        low, high = rope.get("low_freq_factor"), rope.get("high_freq_factor")
        if isinstance(low, (int, float)) and isinstance(high, (int, float)) and high <= low:
            yield f"its rope_parameters.high_freq_factor is {high}, and must be above low_freq_factor, {low}"


def _of_heads(text: Any) -> Iterator[str]:
    """Heads that do not divide what they share."""
    heads, kv_heads = getattr(text, "num_attention_heads", None), getattr(text, "num_key_value_heads", None)
    hidden, width = getattr(text, "hidden_size", None), getattr(text, "head_dim", None)
    if getattr(text, "kv_lora_rank", None):
        if isinstance(kv_heads, int) and kv_heads != heads:
            yield (
                f"its num_key_value_heads is {kv_heads}, and must be num_attention_heads, {heads}: latent attention "
                "has a key for every head"
            )
        return
    if not isinstance(heads, int) or not isinstance(hidden, int):
        return
    own_hidden, own_heads = (getattr(type(text), name, None) for name in ("hidden_size", "num_attention_heads"))
    if isinstance(own_hidden, int) and isinstance(own_heads, int) and own_hidden % own_heads:
        return  # a family whose heads are rounded down (GLM 4.5)
    if hidden % heads and width in (None, hidden // heads):
        yield f"its hidden_size, {hidden}, cannot be divided among {heads} heads (num_attention_heads)"


def _heads_of_layers(text: Any) -> list[tuple[Any, Any]]:
    heads, kv_heads = values_of(text, "num_attention_heads"), values_of(text, "num_key_value_heads")
    layers = max(len(heads), len(kv_heads))
    return [(heads[n % len(heads)], kv_heads[n % len(kv_heads)]) for n in range(layers)]


def _rope_parameters(text: Any) -> list[dict[str, Any]]:
    rope = getattr(text, "rope_parameters", None)
    if not isinstance(rope, dict):
        return []
    return [rope, *(value for value in rope.values() if isinstance(value, dict))]


def _first(text: Any, names: tuple[str, ...]) -> tuple[str, int] | None:
    """The first of the settings that is a number above 0."""
    found = ((name, getattr(text, name, None)) for name in names if not differs_by_layer(text, name))
    return next(((name, value) for name, value in found if isinstance(value, int) and value > 0), None)


def _name(path: Path) -> str:
    return ".".join(path)
