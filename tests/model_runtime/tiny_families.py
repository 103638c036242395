"""Tiny random models whose attention does more than Llama's: sinks, soft-capping, chunks, windows in the mask only,
positions counted from the cache, layers that drop keyword arguments, text models inside composite ones.

Windows, chunks and floors are short, so that a few dozen tokens pass them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Gemma2Config,
    GptOssConfig,
    Llama4Config,
    Llama4TextConfig,
    LlamaConfig,
    MiMoV2FlashConfig,
    Mistral3Config,
    NemotronConfig,
    Phi3Config,
    PhimoeConfig,
    PreTrainedModel,
    Qwen3VLConfig,
)

CONTEXT_TOKENS = 512
LONGROPE_TOKENS = 400
_SMALL: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT_TOKENS,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_EYES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


def _llama4(**more: Any) -> Llama4TextConfig:
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size_mlp": 96}
    return Llama4TextConfig(**_SMALL, head_dim=16, **experts, **more)


def _mistral3() -> Mistral3Config:
    text = {"model_type": "mistral", **_SMALL, "head_dim": 16, "sliding_window": 24}
    return Mistral3Config(
        text_config=text, vision_config={"model_type": "pixtral", **_EYES, "image_size": 28, "patch_size": 14}
    )


def _qwen3_vl() -> Qwen3VLConfig:
    rope = {**_ROPE, "mrope_section": [4, 2, 2]}
    eyes = {"hidden_size": 32, "intermediate_size": 64, "depth": 1, "num_heads": 2}
    return Qwen3VLConfig(
        text_config={**_SMALL, "head_dim": 16, "rope_parameters": rope},
        vision_config={**eyes, "out_hidden_size": 64, "deepstack_visual_indexes": [0]},
    )


def _llama4_with_eyes() -> Llama4Config:
    projector = {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}
    eyes = {**_EYES, "intermediate_size": 128, "image_size": 28, "patch_size": 14, **projector}
    return Llama4Config(text_config=_llama4(attention_chunk_size=32).to_dict(), vision_config=eyes)


def _longrope() -> Phi3Config:
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": LONGROPE_TOKENS}
    factors = {"short_factor": [1.0 + n / 8 for n in range(8)], "long_factor": [2.0 + n for n in range(8)]}
    return Phi3Config(**_SMALL, rope_parameters={**rope, **factors}, original_max_position_embeddings=LONGROPE_TOKENS)


FAMILIES: dict[str, Callable[[], Any]] = {
    "gemma2": lambda: Gemma2Config(**_SMALL, head_dim=16, sliding_window=24, query_pre_attn_scalar=16),
    "gpt_oss": lambda: GptOssConfig(
        **_SMALL, head_dim=16, sliding_window=24, num_local_experts=2, num_experts_per_tok=1, rope_parameters=_ROPE
    ),
    "mimo_v2_flash": lambda: MiMoV2FlashConfig(**_SMALL, head_dim=16, v_head_dim=16, sliding_window=24),
    "phimoe with a window": lambda: PhimoeConfig(**_SMALL, num_local_experts=2, sliding_window=24),
    "llama4 with chunks": lambda: _llama4(attention_chunk_size=32),
    "llama4 with a floor": lambda: _llama4(attention_chunk_size=32, floor_scale=16, attn_temperature_tuning=True),
    "nemotron": lambda: NemotronConfig(**_SMALL, head_dim=16),
    "mistral3 (composite)": _mistral3,
    "qwen3_vl (composite)": _qwen3_vl,
    "llama4 (composite)": _llama4_with_eyes,
    "phi3 with long RoPE": _longrope,
    "llama with dynamic RoPE": lambda: LlamaConfig(
        **_SMALL, rope_parameters={**_ROPE, "rope_type": "dynamic", "factor": 4.0}
    ),
}


def tiny_family(name: str) -> PreTrainedModel:
    """The model, the same at every call."""
    config = FAMILIES[name]()
    auto = AutoModelForImageTextToText if "(composite)" in name else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(21)
        model: PreTrainedModel = auto.from_config(config, dtype=torch.float32).eval()
        for parameter in model.parameters():
            if parameter.dim() == 1 and not bool(parameter.any()):  # sinks start as zeros
                torch.nn.init.normal_(parameter)
    return model
