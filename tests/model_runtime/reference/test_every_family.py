"""Families and their variants, saved as checkpoints and loaded as a user would: each is exact, or refused for its
reason from the config alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from model_runtime.interface.config import ModelConfig
from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.checks.family_check import check_family
from model_runtime.reference.comparison import compare_model
from model_runtime.reference.findings import ModelComparison, Verdict
from tests.model_runtime.small_configs import CannotMakeSmall, save_small, small_config

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_HALF = {**_ROPE, "partial_rotary_factor": 0.5}
_YARN = {**_ROPE, "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}
_MISTRAL_4 = {
    **_YARN,
    "llama_4_scaling_beta": 0.4,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "partial_rotary_factor": 1 / 3,
}
_SCALES = {"embedding_multiplier": 3.0, "attention_multiplier": 0.3, "residual_multiplier": 0.4, "logits_scaling": 4.0}
_EXPERTS = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 48}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma4 with wide heads in some layers": ("gemma4_text", {"global_head_dim": 32}),
    "gemma4 with experts": ("gemma4_text", _EXPERTS),
    "cohere2": ("cohere2", {"logit_scale": 0.3, "sliding_window": 200}),
    "granite with multipliers": ("granite", {**_SCALES, "attention_bias": True}),
    "smollm3 without positions in a layer": ("smollm3", {"no_rope_layers": [1, 1, 0, 1]}),
    "stablelm in parallel": ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
    "gpt_neox in sequence": ("gpt_neox", {"use_parallel_residual": False, "rope_parameters": _HALF}),
    "gpt2 scaled by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "exaone4": ("exaone4", {"sliding_window": 16}),
    "qwen3 with yarn": ("qwen3", {"rope_parameters": _YARN, "attention_bias": True, "head_dim": 32}),
    "olmo3 with a window of 200": ("olmo3", {"sliding_window": 200}),
    "mistral 4": ("mistral4", {"rope_parameters": _MISTRAL_4}),
    "mistral 4 within mistral 3": (
        "mistral3",
        {"text_config": {"model_type": "mistral4", "rope_parameters": _MISTRAL_4}},
    ),
    "video llama 3, which returns all logits": ("video_llama_3", {}),
    "llava of gemma 2, which has no SDPA": ("llava", {"text_config": {"model_type": "gemma2"}}),
    "llava of mistral": ("llava", {"text_config": {"model_type": "mistral", "sliding_window": 16}}),
}


def compared(family: str, changes: dict[str, Any], directory: Path) -> ModelComparison:
    path = save_small(small_config(family, changes), directory / "model")
    return compare_model(ModelConfig(str(path), quantization="none", device="cpu", cache_dir=directory), lambda _: None)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_exact(name: str, tmp_path: Path) -> None:
    found = compared(*VARIANTS[name], tmp_path)
    assert found.verdict is Verdict.EXACT, found.sentence


@pytest.mark.long
@pytest.mark.parametrize("family", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
def test_a_family_is_exact_or_refused(family: str, tmp_path: Path) -> None:
    """Nothing differs in silence, and nothing ends in another error than a sentence."""
    try:
        config = small_config(family, {})
        check_family(family, config)
        found = compared(family, {}, tmp_path)
    except ModelLoadError:
        return
    except CannotMakeSmall as error:
        pytest.skip(str(error)[:200])
    assert found.verdict in (Verdict.EXACT, Verdict.REFUSED), found.sentence
