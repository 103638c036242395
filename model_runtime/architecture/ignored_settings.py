"""Settings of a config that transformers accepts and then ignores: with them it would compute another model without a
word, so they are refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from model_runtime.interface.errors import ModelLoadError


def refuse_ignored_settings(config: Any, name: str) -> None:
    """Raises `ModelLoadError` for the first setting of a text model's config that transformers would ignore."""
    ignored = next(_ignored(config), None)
    if ignored:
        setting, value, instead = ignored
        raise ModelLoadError(
            f"{name} cannot be used: its config sets {setting} to {str(value)[:60]}, which transformers ignores for "
            f"this architecture ({instead}), so its answers would be wrong."
        )


def _ignored(config: Any) -> Iterator[tuple[str, object, str]]:
    """Each ignored setting, its value, and what transformers computes instead."""
    if config.model_type == "mpt":
        yield from _ignored_by_mpt(config)
    if config.model_type == "bloom" and config.slow_but_exact and config.pretraining_tp > 1:
        yield "slow_but_exact", True, "with slices, it leaves out the biases of its products"


def _ignored_by_mpt(config: Any) -> Iterator[tuple[str, object, str]]:
    """What MosaicML's own code can compute and `modeling_mpt.py` does not read."""
    attention = config.attn_config
    computed = {
        "attn_type": ("multihead_attention", "it has a key head for each query"),
        "alibi": (True, "it always adds ALiBi"),
        "alibi_bias_max": (8, "its ALiBi always has 8"),
        "prefix_lm": (False, "it is always causal"),
        "qk_ln": (False, "it never normalises queries and keys"),
        "qk_gn": (False, "it never normalises queries and keys"),
        "rope": (False, "it has no rotary positions"),
        "sliding_window_size": (-1, "it has no window"),
        "kv_n_heads": (config.n_heads, "it has a key head for each query"),
    }
    for setting, (expected, instead) in computed.items():
        value = getattr(attention, setting, None)
        if value is not None and value != expected:
            yield f"attn_config.{setting}", value, instead
    if config.logit_scale is not None:
        yield "logit_scale", config.logit_scale, "it does not scale logits"
    if not config.no_bias:
        yield "no_bias", config.no_bias, "its layers never have biases"
    if config.expansion_ratio != 4:
        yield "expansion_ratio", config.expansion_ratio, "its feed-forward layers are always 4 times as wide"
    if "layernorm" not in config.norm_type:
        yield "norm_type", config.norm_type, "its norms are always LayerNorm"
