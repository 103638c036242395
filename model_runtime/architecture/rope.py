"""Rotary positions whose frequencies depend on how long a conversation is."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig


def fixed_rope_tokens(config: PreTrainedConfig) -> int | None:
    """Up to how many tokens a text config's rotary frequencies stay the same: long RoPE (Ding et al. 2024) changes all
    of them at the length that the model was first trained with, dynamic RoPE with every token after it. None if they
    never change."""
    ends = [_end(kind, config) for kind in _kinds(config)]
    return min((end for end in ends if end is not None), default=None)


def changing_rope(config: PreTrainedConfig) -> str | None:
    """The name of such rotary positions, or None."""
    return next((kind["rope_type"] for kind in _kinds(config) if _end(kind, config) is not None), None)


def _kinds(config: PreTrainedConfig) -> list[dict[str, Any]]:
    rope = getattr(config, "rope_parameters", None) or {}
    return [value for value in rope.values() if isinstance(value, dict)] or [rope]


def _end(kind: dict[str, Any], config: PreTrainedConfig) -> int | None:
    longest = int(getattr(config, "max_position_embeddings", 0) or 0)
    match kind.get("rope_type"):
        case "longrope":
            original = kind.get("original_max_position_embeddings")
            return int(original or getattr(config, "original_max_position_embeddings", None) or longest)
        case "dynamic":
            return longest
    return None
