"""Rotary positions whose frequencies depend on how long a conversation is.

Long RoPE (Ding et al. 2024) has two sets of frequencies: a short one up to the length that the model was first trained
with, a long one beyond it. A KV holds rows of one set. Dynamic RoPE changes all frequencies with every token after that
length, so no kept row stays exact there.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

LONG_ROPE = "longrope"


def fixed_rope_tokens(config: PreTrainedConfig) -> int | None:
    """How many tokens a text config's dynamic RoPE can read with kept rows. None without dynamic RoPE, or without a
    limit."""
    longest = int(getattr(config, "max_position_embeddings", 0) or 0)
    return longest if any(kind.get("rope_type") == "dynamic" for kind in _kinds(config)) else None


def short_rope_tokens(config: PreTrainedConfig) -> int | None:
    """Up to how many tokens a text config's long RoPE uses its short frequencies. None without long RoPE."""
    longest = int(getattr(config, "max_position_embeddings", 0) or 0)
    own = getattr(config, "original_max_position_embeddings", None)
    found = [
        int(kind.get("original_max_position_embeddings") or own or longest)
        for kind in _kinds(config)
        if kind.get("rope_type") == LONG_ROPE
    ]
    return min(found, default=None)


def has_fixed_rope(config: PreTrainedConfig) -> bool:
    """Whether its rotary frequencies are the same for every length."""
    return fixed_rope_tokens(config) is None and short_rope_tokens(config) is None


def _kinds(config: PreTrainedConfig) -> list[dict[str, Any]]:
    rope = getattr(config, "rope_parameters", None) or {}
    return [value for value in rope.values() if isinstance(value, dict)] or [rope]
