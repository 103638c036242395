"""The small copy of a large model: small and quick to read, with every kind of its layers, and right where it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from model_runtime.architecture.config_check import declared_context_tokens
from model_runtime.architecture.model_class import auto_class
from model_runtime.architecture.rope import fixed_rope_tokens
from model_runtime.forward.packed.rope_sets import separate_rope_sets
from model_runtime.forward.probing import compare
from model_runtime.forward.probing.boundaries import boundaries_of, numbers_of
from model_runtime.forward.probing.compare import compare_turns
from model_runtime.forward.probing.record import record_layers
from model_runtime.forward.probing.shadow import length_for, small_copies
from model_runtime.interface.errors import ModelLoadError
from model_runtime.kv.geometry import KVGeometry

CPU = torch.device("cpu")
MOST_WEIGHTS = 32_000_000  # 128 MB
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_LLAMA3 = {
    **_ROPE,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_LONG = {"short_factor": [1.0] * 48, "long_factor": [2.0] * 48, "original_max_position_embeddings": 4096}
_SEVEN_B = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 14336}
_PHI_3 = {"hidden_size": 3072, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32}
_GEMMA_4_MOE = {"enable_moe_block": True, "num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704}

# Settings as published; transformers' defaults are those of one published size.
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama 3.1 8B": (
        "llama",
        {**_SEVEN_B, "num_key_value_heads": 8, "max_position_embeddings": 131_072, "rope_parameters": _LLAMA3},
    ),
    "Mistral 7B 0.1": (
        "mistral",
        {**_SEVEN_B, "num_key_value_heads": 8, "max_position_embeddings": 32_768, "sliding_window": 4096},
    ),
    "Gemma 2 9B": ("gemma2", {}),
    "Gemma 3 4B": ("gemma3_text", {"max_position_embeddings": 131_072, "sliding_window": 1024}),
    "Gemma 3n E4B": ("gemma3n_text", {}),
    "Gemma 4": ("gemma4_text", {}),
    "Gemma 4 with experts": ("gemma4_text", _GEMMA_4_MOE),
    "Phi 3 mini 128k": (
        "phi3",
        {
            **_PHI_3,
            "max_position_embeddings": 131_072,
            "original_max_position_embeddings": 4096,
            "sliding_window": 2047,
            "rope_parameters": {**_ROPE, "rope_type": "longrope", **_LONG},
        },
    ),
    "gpt-oss 20b": ("gpt_oss", {"num_hidden_layers": 24, "num_local_experts": 32}),
    "Llama 4 Scout": ("llama4_text", {"attention_chunk_size": 8192}),
    "DeepSeek V3": ("deepseek_v3", {}),
    "Command R7B": ("cohere2", {}),
}


def published(name: str) -> tuple[PreTrainedModel, list[int]]:
    """The model without its weights, and its boundaries."""
    kind, settings = PUBLISHED[name]
    config: PreTrainedConfig = CONFIG_MAPPING[kind](**settings)
    with init_empty_weights(include_buffers=True):
        model = auto_class(config).from_config(config)
    context_tokens = declared_context_tokens(config) or 4096
    return model, boundaries_of(config, [], min(context_tokens, fixed_rope_tokens(config) or context_tokens))


def compared(small: PreTrainedModel, boundaries: list[int]) -> None:
    stock = str(small.config._attn_implementation)  # noqa: SLF001 - transformers has no public name for it
    geometry = KVGeometry(tuple(record_layers(small).shapes), torch.float32, CPU, 64, separate_rope_sets(small))
    compare_turns(small, stock, geometry, length_for(boundaries))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_first_copy_of_a_published_model_is_small_and_agrees(name: str) -> None:
    model, boundaries = published(name)
    small = next(small_copies(model, boundaries))
    assert sum(parameter.numel() for parameter in small.parameters()) <= MOST_WEIGHTS
    assert {number for _, number in numbers_of(small.config.to_dict())}.isdisjoint(boundaries)
    assert length_for(boundaries) < 400
    compared(small, boundaries)


@pytest.mark.parametrize("name", ["Gemma 3n E4B", "Gemma 2 9B", "Llama 4 Scout"])
def test_a_copy_has_every_kind_of_layer(name: str) -> None:
    model, boundaries = published(name)
    own, copied = model.config, next(small_copies(model, boundaries)).config
    lists = [key for key in ("layer_types", "activation_sparsity_pattern", "no_rope_layers") if hasattr(own, key)]
    assert lists
    for key in lists:
        assert set(getattr(copied, key)) == set(getattr(own, key))
    assert bool(getattr(copied, "num_kv_shared_layers", 0)) is bool(getattr(own, "num_kv_shared_layers", 0))


def test_a_large_vocabularys_logits_are_compared_for_the_last_tokens_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "_MOST_LOGITS", 1)
    model, boundaries = published("Mistral 7B 0.1")
    small = next(small_copies(model, boundaries))
    compared(small, boundaries)
    geometry = KVGeometry(tuple(record_layers(small).shapes), torch.float32, CPU, 64)
    small.config.sliding_window = 12  # after its layers were built: only transformers' masks follow it
    with pytest.raises(ModelLoadError, match="differ from its own attention"):
        compare_turns(small, "sdpa", geometry, length_for(boundaries))


def test_lists_of_windows_are_boundaries() -> None:
    found = dict(numbers_of({"window_sizes": [512, 1024.0, None, 1], "mrope_section": [16, 24]}))
    assert found == {("window_sizes", 0): 512, ("window_sizes", 1): 1024}


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("mpt", {"d_model": 7168, "n_heads": 64, "max_seq_len": 8192}),
        (
            "granitemoehybrid",
            {"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4, "max_position_embeddings": 131072},
        ),
    ],
)
def test_widths_in_a_familys_own_words_and_states_without_layers_are_no_boundaries(
    family: str, settings: dict[str, Any]
) -> None:
    found = boundaries_of(CONFIG_MAPPING[family](**settings), [], 131072)
    assert set(found) <= {8, 8192}  # MPT's alibi_bias_max and max_seq_len


@pytest.mark.parametrize("family", ["qwen2_vl", "phi4_multimodal"])
def test_a_composite_models_copy_has_no_eyes(family: str) -> None:
    """They may be larger than all the rest, and no text reaches them."""
    config = CONFIG_MAPPING[family]()
    with init_empty_weights(include_buffers=True):
        model = auto_class(config).from_config(config)
    boundaries = boundaries_of(config.get_text_config(), [], 131_072)
    assert boundaries
    small = next(small_copies(model, boundaries))
    assert sum(parameter.numel() for parameter in small.parameters()) <= MOST_WEIGHTS
    compared(small, boundaries)


def test_settings_of_pictures_and_sound_are_no_boundaries() -> None:
    assert (
        list(numbers_of({"vision_config": {"window_size": 112}, "audio_config": {"max_source_positions": 1500}})) == []
    )
    assert dict(numbers_of({"text_config": {"window_size": 112}})) == {("text_config", "window_size"): 112}
