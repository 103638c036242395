"""Every boundary that a config declares is found, whatever it is called, and nothing that is none."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import (
    AutoConfig,
    Gemma3TextConfig,
    GPTNeoConfig,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
)

from model_runtime.reference.boundaries import boundaries_of

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        (LlamaConfig(), []),
        (MistralConfig(sliding_window=200), [200]),
        (Qwen2Config(use_sliding_window=False, sliding_window=64), []),
        (Gemma3TextConfig(sliding_window=16), [16]),
        (Llama4TextConfig(attention_chunk_size=64, floor_scale=32), [32, 64]),
        (GPTNeoConfig(window_size=24), [24]),
        (LlamaConfig(rope_parameters=LLAMA3, max_position_embeddings=1024), [128]),
        (
            LlamaConfig(
                rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, max_position_embeddings=96
            ),
            [96],
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, PretrainedConfig) else str(value),
)
def test_what_a_config_declares(config: PretrainedConfig, tokens: list[int]) -> None:
    assert [boundary.tokens for boundary in boundaries_of(config)] == tokens


def test_a_composite_config_declares_what_its_text_part_does() -> None:
    text: dict[str, Any] = {"sliding_window": 48}
    config = AutoConfig.for_model("gemma3", text_config=text)
    assert [boundary.tokens for boundary in boundaries_of(config)] == [48]
    assert boundaries_of(config)[0].what == "past 48 tokens (sliding_window)"
