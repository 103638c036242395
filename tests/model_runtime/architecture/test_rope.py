"""Which configs have other rotary frequencies for other lengths."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import LlamaConfig, Phi3Config, PreTrainedConfig

from model_runtime.architecture.rope import fixed_rope_tokens, has_fixed_rope, short_rope_tokens

FACTORS = {"rope_theta": 1e4, "short_factor": [1.0] * 16, "long_factor": [2.0] * 16}
HEADS = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4}


def llama(**rope: Any) -> PreTrainedConfig:
    return LlamaConfig(**HEADS, max_position_embeddings=512, rope_parameters={"rope_theta": 1e4, **rope})


def per_kind(*kinds: dict[str, Any]) -> PreTrainedConfig:
    config = llama(rope_type="default")
    config.rope_parameters = {f"kind_{number}": kind for number, kind in enumerate(kinds)}
    return config


@pytest.mark.parametrize(
    ("config", "fixed_tokens", "short_tokens"),
    [
        (llama(rope_type="default"), None, None),
        (llama(rope_type="linear", factor=2.0), None, None),
        (llama(rope_type="dynamic", factor=2.0), 512, None),
        (llama(rope_type="longrope", original_max_position_embeddings=64, **FACTORS), None, 64),
        (
            Phi3Config(
                **HEADS,
                max_position_embeddings=512,
                original_max_position_embeddings=96,
                rope_parameters={"rope_type": "longrope", **FACTORS},
            ),
            None,
            96,
        ),
        (
            per_kind(
                {"rope_type": "default"}, {"rope_type": "longrope", "original_max_position_embeddings": 32, **FACTORS}
            ),
            None,
            32,
        ),
        (per_kind({"rope_type": "default"}, {"rope_type": "dynamic", "factor": 2.0}), 512, None),
    ],
)
def test_what_a_config_says(config: PreTrainedConfig, fixed_tokens: int | None, short_tokens: int | None) -> None:
    assert fixed_rope_tokens(config) == fixed_tokens
    assert short_rope_tokens(config) == short_tokens
    assert has_fixed_rope(config) is (fixed_tokens is None and short_tokens is None)
