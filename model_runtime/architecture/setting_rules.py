"""What the settings of a text model's config may be: a table of rules by the name of a setting."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from transformers.activations import ACT2CLS
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

Path = tuple[str, ...]
MOST_COUNT = 1 << 40
MOST_LAYERS, MOST_EXPERTS = 1_000, 10_000


@dataclass(frozen=True, slots=True)
class Rule:
    """`names` matches the whole name of a setting. `must_be` ends the sentence "its setting must be ...". A value of
    null says that the model has no such setting, and is not asked."""

    names: re.Pattern[str]
    must_be: str
    holds: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_whole(value) and bool(0 < value < MOST_COUNT)


def _is_above_zero(value: Any) -> bool:
    return not _is_number(value) or (math.isfinite(value) and bool(value > 0))


def _is_not_negative(value: Any) -> bool:
    return not _is_number(value) or bool(value >= 0)


def _is_part(value: Any) -> bool:
    return not _is_number(value) or bool(0 < value <= 1)


# Names of what a model cannot be without, in the words of all families.
_SIZES = re.compile(
    "vocab_size|hidden_size|d_model|n_embd|num_attention_heads|n_heads?|num_heads|num_key_value_heads|num_kv_heads"
    "|max_position_embeddings|n_positions|max_seq_len"
)
_LAYERS = re.compile("num_hidden_layers|n_layers?|num_layers")
_MORE_LAYERS = re.compile("num_hidden_layers|n_layers?|num_layers|decoder_layers|encoder_layers|depth|num_blocks")
_EXPERTS = re.compile("num_experts|num_local_experts|n_routed_experts|moe_num_experts")
_BASES = re.compile(r"((global|local|swa|compress)_)?rope_theta|rope_local_base_freq|rotary_emb_base|rope_base")
_MORE_SIZES = re.compile(
    "head_dim|intermediate_size|original_max_position_embeddings|sliding_window|window_size|attention_chunk_size"
)
_MAY_BE_NONE = re.compile(r"\w*(?<!window)_(size|dim|heads|layers|rank|experts|width)|num_experts_per_tok")
_DIVISORS = re.compile(
    r"(\w+_)?(norm|layernorm)_(eps|epsilon)|query_pre_attn_scalar|logits_scaling|(attn|attention|final)_logit_softcapping"
    r"|factor|short_factor|long_factor|low_freq_factor|high_freq_factor|beta_fast|beta_slow"
)
_ACTIVATIONS = re.compile("(mlp_|projector_)?hidden_act|hidden_activation|activation_function|activation")
_ROPE_TYPES = frozenset({"default", "axial", *ROPE_INIT_FUNCTIONS})
_SKIPPED = frozenset({"quantization_config", "id2label", "label2id", "task_specific_params", "auto_map"})
_LIMITS = frozenset({"time_step_limit"})  # of recurrent layers: no limit is written as infinity

# Each layer, and in some families each expert, is built as modules before anything is compared with the files.
OF_MODULES = (
    Rule(_MORE_LAYERS, f"at most {MOST_LAYERS:,}", lambda value: not _is_number(value) or value <= MOST_LAYERS),
    Rule(_EXPERTS, f"at most {MOST_EXPERTS:,}", lambda value: not _is_number(value) or value <= MOST_EXPERTS),
)
# transformers divides by sizes while it builds a config, and overlooks a base beside `rope_parameters`.
OF_ENTRIES = (
    Rule(_LAYERS, f"a whole number from 1 to {MOST_LAYERS:,}", lambda value: _is_count(value) and value <= MOST_LAYERS),
    *OF_MODULES,
    Rule(_SIZES, "a whole number above 0", _is_count),
    Rule(_BASES, "a number above 0", _is_above_zero),
)
OF_TEXTS = (
    *OF_ENTRIES,
    Rule(_MORE_SIZES, "a whole number above 0", lambda value: not _is_number(value) or _is_count(value)),
    Rule(_MAY_BE_NONE, "a number that is not negative", _is_not_negative),
    Rule(_DIVISORS, "a number above 0", _is_above_zero),
    Rule(re.compile("partial_rotary_factor|rotary_pct"), "above 0 and at most 1", _is_part),
    Rule(re.compile("rope_type"), f"one of {', '.join(sorted(_ROPE_TYPES))}", lambda kind: kind in _ROPE_TYPES),
)


def broken_rule(name: str, value: Any, rules: tuple[Rule, ...]) -> Rule | None:
    """The rule that the value of a setting breaks; None if there is none, and for null."""
    if value is None:
        return None
    return next((rule for rule in rules if rule.names.fullmatch(name) and not rule.holds(value)), None)


def is_unknown_activation(name: str, value: Any) -> bool:
    """Whether a setting names an activation function that transformers does not have."""
    return isinstance(value, str) and _ACTIVATIONS.fullmatch(name) is not None and value not in ACT2CLS


def is_no_number(name: str, value: Any) -> bool:
    """Whether the value of a setting is NaN or infinity."""
    return isinstance(value, float) and not math.isfinite(value) and not (name in _LIMITS and value > 0)


def shown(value: Any) -> str:
    """A value as a sentence shows it: short, and text in quotes."""
    return repr(value)[:60] if isinstance(value, str) else str(value)[:60]


def settings_in(config: Mapping[Any, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value in a config and the names that lead to it; of lists, each of their values."""
    for key, value in config.items():
        if key not in _SKIPPED:
            yield from _values_in(value, (*path, str(key)))


def _values_in(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, Mapping):
        yield from settings_in(value, path)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _values_in(one, path)
    else:
        yield path, value
