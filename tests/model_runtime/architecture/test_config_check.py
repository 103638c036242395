"""Numbers that no model can have are refused from the config alone, by the name of their setting; no family's own
config is."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import (
    DbrxConfig,
    DeepseekV3Config,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    GraniteConfig,
    GraniteMoeHybridConfig,
    LlamaConfig,
    MiniCPM3Config,
    MistralConfig,
    MptConfig,
    PretrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from model_runtime.architecture.config_check import check_config
from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.checks.family_check import check_family

NAN, INFINITY = float("nan"), float("inf")
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


def changed(config: PretrainedConfig, **changes: Any) -> PretrainedConfig:
    """The config after it was built: some classes refuse to build it, others do not."""
    vars(config).update(changes)
    return config


REFUSED: list[tuple[PretrainedConfig, str]] = [
    *(
        (changed(LlamaConfig(), **{name: value}), f"its {name} is {value}, and must be a whole number")
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        for value in (0, -1, 2.5)
    ),
    (changed(LlamaConfig(), max_position_embeddings=0), "its max_position_embeddings is 0"),
    (changed(LlamaConfig(), intermediate_size=-4), "its intermediate_size is -4"),
    (changed(LlamaConfig(), vocab_size=True), "its vocab_size is True"),
    (changed(GPT2Config(), n_head=0), "its n_head is 0"),
    (changed(MptConfig(), d_model=-64), "its d_model is -64"),
    (changed(FalconConfig(), num_kv_heads=0), "its num_kv_heads is 0"),
    (changed(MistralConfig(), sliding_window=-1), "its sliding_window is -1"),
    (changed(Qwen3MoeConfig(), moe_intermediate_size=-1), "its moe_intermediate_size is -1"),
    (
        changed(Qwen3MoeConfig(), num_local_experts=4, num_experts_per_tok=8),
        "num_experts_per_tok is 8, and it has 4 experts",
    ),
    (changed(LlamaConfig(), num_key_value_heads=5), "32 heads cannot share 5 key heads .* num_key_value_heads"),
    (
        changed(LlamaConfig(), num_attention_heads=33, num_key_value_heads=33, head_dim=None),
        "4096, cannot be divided among 33 heads",
    ),
    (changed(GPT2Config(), n_head=5), "768, cannot be divided among 5 heads"),
    (DeepseekV3Config(num_key_value_heads=8), "num_key_value_heads is 8, and must be num_attention_heads, 128"),
    (MiniCPM3Config(num_key_value_heads=8), "num_key_value_heads is 8, and must be num_attention_heads, 40"),
    *(
        (LlamaConfig(rope_parameters={"rope_theta": v, "rope_type": "default"}), "rope_theta is")
        for v in (0, -1.0, NAN)
    ),
    (Gemma3TextConfig(rope_local_base_freq=0.0), "rope_theta is 0.0"),
    (LlamaConfig(rope_parameters={**LLAMA3, "factor": 0.0}), r"rope_parameters.factor is 0\.0"),
    (LlamaConfig(rope_parameters={**LLAMA3, "high_freq_factor": 1.0}), "must be above low_freq_factor"),
    (LlamaConfig(rope_parameters={"rope_type": "spiral", "rope_theta": 1e4}), "rope_type is 'spiral', and must be one"),
    (LlamaConfig(rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 1.5}), "above 0 and at most 1"),
    (changed(LlamaConfig(), rms_norm_eps=0.0), "its rms_norm_eps is 0"),
    (changed(LlamaConfig(), initializer_range=NAN), "its initializer_range is nan, which is not a number"),
    (changed(GraniteConfig(), attention_multiplier=INFINITY), "its attention_multiplier is inf"),
    (changed(GraniteConfig(), logits_scaling=0.0), "its logits_scaling is 0"),
    (changed(Gemma2Config(), attn_logit_softcapping=0.0), "its attn_logit_softcapping is 0"),
    (changed(LlamaConfig(), hidden_act="swoosh"), "its hidden_act is 'swoosh', which is no activation function"),
    (changed(GPT2Config(), activation_function="gelly"), "its activation_function is 'gelly'"),
    (
        changed(Gemma3TextConfig(), layer_types=["full_attention"] * 3),
        "layer_types lists 3 layers, and num_hidden_layers is 26",
    ),
    (changed(SmolLM3Config(), no_rope_layers=[1, 1]), "its no_rope_layers lists 2 layers"),
    (
        CONFIG_MAPPING["llava"](vision_config={"model_type": "clip_vision_model", "hidden_act": "none"}),
        "its vision_config.hidden_act is 'none'",
    ),
    (
        CONFIG_MAPPING["llava"](text_config={"model_type": "llama", "rms_norm_eps": NAN}),
        "text_config.rms_norm_eps is nan",
    ),
]


@pytest.mark.parametrize(("config", "sentence"), REFUSED, ids=[sentence for _, sentence in REFUSED])
def test_a_setting_that_no_model_can_have_is_refused_by_name(config: PretrainedConfig, sentence: str) -> None:
    with pytest.raises(ModelLoadError, match=f"^Mine cannot be used: .*{sentence}.*[.]$"):
        check_config(config, "Mine")


ACCEPTED: list[PretrainedConfig] = [
    LlamaConfig(num_attention_heads=3, num_key_value_heads=1, hidden_size=96, head_dim=16),
    Qwen3Config(hidden_size=100, num_attention_heads=3, num_key_value_heads=1),  # its heads are 128 wide in any case
    GraniteMoeHybridConfig(num_hidden_layers=2, layer_types=["full_attention"] * 2, num_local_experts=0),
    GptOssConfig(),
    DbrxConfig(),
    LlamaConfig(rope_parameters=LLAMA3, pad_token_id=-1),
]


@pytest.mark.parametrize("config", ACCEPTED, ids=[type(config).__name__ for config in ACCEPTED])
def test_settings_that_models_have_are_accepted(config: PretrainedConfig) -> None:
    check_config(config, "Mine")


@pytest.mark.parametrize("family", [*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES])
def test_no_familys_own_config_is_refused_for_its_numbers(family: str) -> None:
    try:
        config = CONFIG_MAPPING[family]()
    except Exception as error:
        pytest.skip(f"it has no config of its own: {error}"[:200])
    try:
        check_config(config, family)
    except (ModelLoadError, ValueError):  # what is refused for its family does not get there
        with pytest.raises(ModelLoadError):
            check_family(family, config)
