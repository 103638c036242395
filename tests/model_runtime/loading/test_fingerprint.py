"""What a saved KV's numbers rest on: every setting by which a model places and sees tokens."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from transformers import (
    BloomConfig,
    FalconConfig,
    GPTJConfig,
    GPTNeoConfig,
    LlamaConfig,
    MptConfig,
    Phi3Config,
    PretrainedConfig,
)

from model_runtime.loading.fingerprint import model_fingerprint

LONG_ROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
CHANGES = [
    (FalconConfig(), FalconConfig(alibi=True)),
    (FalconConfig(), FalconConfig(rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0})),
    (FalconConfig(num_kv_heads=4, num_attention_heads=8), FalconConfig(num_kv_heads=2, num_attention_heads=8)),
    (MptConfig(), MptConfig(attn_config={"clip_qkv": 6.0})),
    (MptConfig(), MptConfig(attn_config={"softmax_scale": 0.1})),
    (GPTNeoConfig(), GPTNeoConfig(window_size=128)),
    (GPTNeoConfig(), GPTNeoConfig(attention_types=[[["global"], 24]])),
    (GPTJConfig(), GPTJConfig(rotary_dim=32)),
    tuple(Phi3Config(max_position_embeddings=tokens, rope_parameters=dict(LONG_ROPE)) for tokens in (8192, 16384)),
]


@pytest.mark.parametrize(("before", "now"), CHANGES, ids=range(len(CHANGES)))
def test_another_way_to_place_tokens_is_another_fingerprint(
    before: PretrainedConfig, now: PretrainedConfig, tmp_path: Path
) -> None:
    assert model_fingerprint(tmp_path, before) != model_fingerprint(tmp_path, now)
    assert model_fingerprint(tmp_path, before) == model_fingerprint(tmp_path, type(before)(**before.to_dict()))


@pytest.mark.parametrize("config", [LlamaConfig(), BloomConfig()], ids=["llama", "bloom"])
def test_settings_that_a_model_does_not_have_are_left_out(config: PretrainedConfig, tmp_path: Path) -> None:
    """Memory saved before these settings were known stays valid."""
    names = ("rope_parameters", "sliding_window", "layer_types")
    known = json.dumps({name: getattr(config, name, None) for name in names}, sort_keys=True, default=str)
    assert f"rope: {hashlib.sha256(known.encode()).hexdigest()[:16]}" in model_fingerprint(tmp_path, config)
