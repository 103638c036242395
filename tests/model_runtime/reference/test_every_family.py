"""Families and their variants, saved as checkpoints and loaded as a user would: each is exact, or refused for its
reason from the config alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

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
    "gemma 4 unified, whose masks know pictures": ("gemma4_unified", {}),
    "qwen2.5-vl, with positions of three axes": ("qwen2_5_vl", {}),
    "voxtral, of sound and text": ("voxtral", {}),
    "bert as a decoder": ("bert", {"is_decoder": True}),
    "llava of mistral": ("llava", {"text_config": {"model_type": "mistral", "sliding_window": 16}}),
}

# Families whose small models were found exact: none of them may come to be refused.
KNOWN_EXACT = frozenset(
    {
        *("afmoe", "apertus", "arcee", "aria", "aria_text", "axk1", "aya_vision", "beam", "biogpt", "bitnet"),
        *("bloom", "chameleon", "codegen", "cohere", "cohere2", "cohere2_moe", "cohere2_vision", "cohere_compass"),
        *("cohere_compass_text", "cosmos3_edge", "cosmos3_omni", "ctrl", "cwm", "dbrx", "deepseek_ocr2"),
        *("deepseek_v2", "deepseek_v3", "deepseek_vl", "deepseek_vl_hybrid", "dots1", "ernie4_5", "ernie4_5_moe"),
        *("ernie4_5_vl_moe", "exaone4", "exaone4_5", "exaone_moe", "falcon", "flex_olmo", "flint", "fuyu", "gemma"),
        *("gemma2", "gemma3", "gemma3_text", "gemma3n_text", "gemma4", "gemma4_text", "gemma4_unified"),
        *("gemma4_unified_text", "glm", "glm4", "glm46v", "glm4_moe", "glm4_moe_lite", "glm4v", "glm4v_moe"),
        *("glm_ocr", "glmasr", "glmga", "got_ocr2", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox"),
        *("gpt_neox_japanese", "gpt_oss", "gptj", "granite", "granite_docling", "granite_speech"),
        *("granite_speech_plus", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoeshared", "helium"),
        *("hunyuan_v1_dense", "hunyuan_v1_moe", "hunyuan_vl", "hy_v3", "hyperclovax", "hyperclovax_vision_v2"),
        *("idefics2", "idefics3", "internlm3", "internvl", "iquestcoder", "jais2", "jetmoe", "kimi_k25", "kolibri1"),
        *("laguna", "lfm2", "lfm2_moe", "lfm2_vl", "lighton_ocr", "llama", "llama4", "llama4_text", "llava"),
        *("llava_next", "llava_next_video", "llava_onevision", "mellum", "mimo_v2_flash", "minicpm3", "minimax_m2"),
        *("minimax_m3_vl", "minimax_m3_vl_text", "ministral", "ministral3", "mistral", "mistral3", "mistral4"),
        *("mixtral", "modernbert-decoder", "molmo2", "moshi", "moss_transcribe_diarize", "mpt", "muse_glimmer"),
        *("nanochat", "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "openai-gpt", "opt", "ovis2", "paddleocr_vl"),
        *("persimmon", "phi", "phi3", "phi4_multimodal", "phimoe", "pp_chart2table", "qianfan_ocr", "qwen2"),
        *("qwen2_5_omni_thinker", "qwen2_5_vl", "qwen2_audio", "qwen2_moe", "qwen2_vl", "qwen3", "qwen3_asr"),
        *("qwen3_moe", "qwen3_omni_moe_thinker", "qwen3_vl", "qwen3_vl_moe", "seed_oss", "smollm3", "smolvlm"),
        *("solar_open", "stablelm", "starcoder2", "step3p7", "unlimited_ocr", "vaultgemma", "video_llama_3"),
        *("video_llava", "vipllava", "voxtral", "xglm", "youtu"),
    }
)


def compared(family: str, changes: dict[str, Any], directory: Path) -> ModelComparison:
    path = save_small(small_config(family, changes), directory / "model")
    return compare_model(ModelConfig(str(path), quantization="none", device="cpu", cache_dir=directory), lambda _: None)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_exact(name: str, tmp_path: Path) -> None:
    found = compared(*VARIANTS[name], tmp_path)
    assert found.verdict is Verdict.EXACT, found.sentence


@pytest.mark.long
@pytest.mark.parametrize(
    "family", dict.fromkeys((*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES))
)
def test_a_family_is_exact_or_refused(family: str, tmp_path: Path) -> None:
    """Nothing differs in silence, and nothing ends in another error than a sentence."""
    try:
        verdict, sentence = verdict_on(family, tmp_path)
    except CannotMakeSmall as error:
        pytest.skip(str(error)[:200])
    assert verdict is Verdict.EXACT or (verdict is Verdict.REFUSED and family not in KNOWN_EXACT), sentence


def verdict_on(family: str, directory: Path) -> tuple[Verdict, str]:
    try:
        config = small_config(family, {})
        check_family(family, config)
        found = compared(family, {}, directory)
    except ModelLoadError as error:
        return Verdict.REFUSED, str(error)
    return found.verdict, found.sentence
