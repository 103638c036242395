"""A small config of any family that transformers knows: its defaults, with every width, count and length made small by
the name of its setting. What is not known by name stays as it is, so new families are tried without a line for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import GenerationConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from model_runtime.architecture.model_class import auto_class
from tests.model_runtime.tiny_models import CONTEXT_TOKENS, SLIDING_WINDOW_TOKENS, VOCABULARY_TOKENS, tiny_tokenizer

_MOST_WEIGHTS = 40_000_000
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers")
_SETTINGS: tuple[tuple[int, str], ...] = (
    (64, "hidden_size d_model n_embd embed_dim embedding_size word_embed_proj_dim"),
    (96, "intermediate_size ffn_dim n_inner intermediate_size_mlp ffn_hidden_size dff decoder_ffn_dim encoder_ffn_dim"),
    (
        48,
        (
            "moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size "
            "shared_intermediate_size"
        ),
    ),
    (32, "attention_chunk_size index_topk dim_model_base"),
    (24, "q_lora_rank qk_head_dim"),
    (
        16,
        (
            "head_dim global_head_dim swa_head_dim dim_head v_head_dim swa_v_head_dim kv_lora_rank qk_nope_head_dim "
            "o_lora_rank hidden_size_per_layer_input index_head_dim query_pre_attn_scalar mamba_d_head"
        ),
    ),
    (8, "qk_rope_head_dim laurel_rank rotary_dim mamba_d_state state_size"),
    (
        4,
        (
            "num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads "
            "encoder_attention_heads swa_num_attention_heads num_experts num_local_experts n_routed_experts "
            "moe_num_experts mamba_n_heads"
        ),
    ),
    (
        2,
        (
            "num_key_value_heads num_kv_heads swa_num_key_value_heads num_global_key_value_heads num_experts_per_tok "
            "moe_k moe_topk top_k_experts num_experts_per_token index_n_heads"
        ),
    ),
    (
        1,
        (
            "n_shared_experts num_shared_experts n_group topk_group first_k_dense_replace num_dense_layers "
            "num_kv_shared_layers moe_layer_start_index"
        ),
    ),
    (0, "num_nextn_predict_layers num_mtp_layers"),
    (CONTEXT_TOKENS, "max_position_embeddings n_positions n_ctx max_seq_len seq_length"),
    (SLIDING_WINDOW_TOKENS, "sliding_window window_size swa_window_size local_attention"),
    (VOCABULARY_TOKENS, "vocab_size vocab_size_per_layer_input"),
)
_SIZES = {name: size for size, names in _SETTINGS for name in names.split()}
_EYES: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "embed_dim", "d_model", "proj_hidden_size", "attention_dim"), 32),
    **dict.fromkeys(("intermediate_size", "mlp_dim", "encoder_ffn_dim", "out_hidden_size", "text_hidden_size"), 64),
    **dict.fromkeys(("num_attention_heads", "num_heads", "num_key_value_heads", "spatial_merge_size"), 2),
    **dict.fromkeys((*_LAYERS, "depth", "num_blocks"), 1),
    "image_size": 28,
    "patch_size": 14,
    "window_size": 28,
    "num_position_embeddings": 16,
    "head_dim": 16,
}
_TEXT_PARTS = ("text_config", "llm_config", "language_config", "decoder", "thinker_config")
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_OF_TWO_KINDS = {"full_attention": _ROPE, "sliding_attention": _ROPE}
_THREE_AXES = {"text_config": {"rope_parameters": {**_ROPE, "mrope_section": [4, 2, 2]}}}
_HEADS_OF_16 = {"head_dim": 16}
_ONE_EYE = {"hidden_sizes": [32], "patch_sizes": [14], "depths": [1]}
# What some families need besides: their defaults are no model, or do not say what depends on the sizes above.
_NEEDED: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral"), _HEADS_OF_16),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "glm4v", "glm46v", "glm_ocr", "glmga", "paddleocr_vl"), _THREE_AXES),
    "glm4v_moe": {
        "text_config": {"rope_parameters": {**_ROPE, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}}
    },
    "ernie4_5_vl_moe": {"text_config": {"rope_parameters": {**_ROPE, "mrope_section": [3, 3, 2]}}},
    "hunyuan_vl": {"text_config": {"head_dim": 16, "rope_parameters": {**_ROPE, "mrope_section": [2, 2, 2, 2]}}},
    "chameleon": {"vocabulary_map": {"<image>": 500, "IMGIMGA": 501}},
    "cohere_compass_text": {"rope_parameters": _OF_TWO_KINDS},
    "cohere_compass": {"text_config": {"rope_parameters": _OF_TWO_KINDS}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 1.0, "rope_theta": 10000.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deepseek_ocr2": {"text_config": {"num_experts_per_tok": 2, "mlp_layer_types": ["dense", *["sparse"] * 3]}},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "lfm2_moe": {"layer_types": ["full_attention"] * 4},
    "mistral4": {
        "rope_parameters": {
            **_ROPE,
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 64,
            "llama_4_scaling_beta": 0.4,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "partial_rotary_factor": 1 / 3,
        }
    },
    "molmo2": {"adapter_config": {"vision_feature_layer": [0]}, "text_config": {"rope_scaling_layers": [0, 1, 2, 3]}},
    "step3p7": {"text_config": {"sliding_window": 16}},
    "muse_spark": {"vision_config": _ONE_EYE},
    "qwen2_audio": {"audio_config": {"encoder_attention_heads": 2}},
    "fun_asr_nano": {"adaptor_config": {"hidden_size": 64, "intermediate_size": 16}},
    "nemotron": {"num_key_value_heads": 2},
    "qwen2_5_omni_thinker": {**_THREE_AXES, "audio_config": {"encoder_attention_heads": 2}},
    "qwen3_omni_moe_thinker": {**_THREE_AXES, "audio_config": {"encoder_attention_heads": 2}},
}


class CannotMakeSmall(Exception):
    """The family's config or class does not bear it."""


def small_config(family: str, changes: Mapping[str, Any]) -> PretrainedConfig:
    """The config with `changes`. Raises `CannotMakeSmall`."""
    why: Exception | None = None
    changes = {**_NEEDED.get(family, {}), **changes}
    for has_lists in (True, False):  # some derive their layers' kinds by rules of their own
        try:
            config = CONFIG_MAPPING[family](**_small(CONFIG_MAPPING[family]().to_dict(), has_lists, changes))
            with init_empty_weights(include_buffers=True):
                weights = sum(p.numel() for p in auto_class(config).from_config(config).parameters())
        except Exception as error:  # each class has its own rules
            why = error
            continue
        if weights <= _MOST_WEIGHTS:
            return config
    raise CannotMakeSmall(f"{family}: {why or 'too large'}")


def save_small(config: PretrainedConfig, directory: Path) -> Path:
    """A checkpoint of the config with the tiny tokenizer. Every weight is random, biases and norms too."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(21)
        try:
            model = auto_class(config).from_config(config, dtype=torch.float32).eval()
        except Exception as error:
            raise CannotMakeSmall(str(error)) from error
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=2, pad_token_id=2)
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def _small(default: Mapping[str, Any], has_lists: bool, changes: Mapping[str, Any]) -> dict[str, Any]:
    parts = {name: v for name, v in default.items() if isinstance(v, dict) and "model_type" in v}
    is_text = "vocab_size" in default and any(isinstance(default.get(name), int) for name in _LAYERS)
    small = _small_text(default, has_lists) if is_text or not parts else _small_frame(default)
    for name, part in parts.items():
        asked = dict(changes.get(name, {}))
        kind = asked.get("model_type", part["model_type"])
        if name in _TEXT_PARTS:
            own = part if kind == part["model_type"] else CONFIG_MAPPING[kind]().to_dict()
            small[name] = {"model_type": kind, **_small(own, has_lists, {}), **asked}
        else:
            small[name] = {"model_type": kind, **_small_eyes(part), **asked}
    return {**small, **{name: value for name, value in changes.items() if name not in parts}}


def _small_text(default: Mapping[str, Any], has_lists: bool) -> dict[str, Any]:
    small: dict[str, Any] = {name: size for name, size in _SIZES.items() if _is_count(default.get(name))}
    layers, lists = 4, dict[str, Any]()
    of_layers = [name for name in _LAYERS if _is_count(default.get(name))]
    if of_layers and has_lists:
        layers, lists = _few_layers(default, int(default[of_layers[0]]))
    small.update(dict.fromkeys(of_layers, layers))
    small.update(lists)
    for name, value in default.items():
        if name in ("initializer_range", "init_std"):
            small[name] = 0.2
        elif name.endswith("token_id") and isinstance(value, int):
            small[name] = {"bos_token_id": 1, "eos_token_id": 2}.get(name, 0)
    if _is_count(default.get("qk_rope_head_dim")):  # latent attention: keys are expanded for every head
        small.update({name: size for name, size in (("head_dim", 8), ("num_key_value_heads", 4)) if name in default})
    rope = default.get("rope_parameters")
    if isinstance(rope, dict) and ("mrope_section" in rope or "original_max_position_embeddings" in rope):
        near = {"mrope_section": [4, 2, 2], "original_max_position_embeddings": 64}
        small["rope_parameters"] = {name: near.get(name, value) for name, value in rope.items()}
    return small


def _few_layers(default: Mapping[str, Any], layers: int) -> tuple[int, dict[str, Any]]:
    """How many layers show every kind, four at least, and what the config's lists say of them."""
    lists = {name: v for name, v in default.items() if isinstance(v, list) and len(v) == layers}
    numbers = [name for name, v in lists.items() if v == list(range(layers))]  # "all layers", as in Llama 4
    lists = {name: v for name, v in lists.items() if name not in numbers}
    kinds = [str(row) for row in zip(*lists.values(), strict=True)]
    first = sorted({kind: n for n, kind in reversed(list(enumerate(kinds)))}.values())
    more = [n for n in range(layers) if n not in first]
    kept = sorted([*first, *more[: max(0, 4 - len(first))]])
    few = {name: [v[n] for n in kept] for name, v in lists.items()}
    return len(kept), few | {name: list(range(len(kept))) for name in numbers}


def _small_frame(default: Mapping[str, Any]) -> dict[str, Any]:
    """What stands beside the parts of a composite config."""
    sizes = {"hidden_size": 64, "projector_hidden_size": 64, "projection_dim": 64, "vocab_size": VOCABULARY_TOKENS}
    small = {name: size for name, size in sizes.items() if _is_count(default.get(name))}
    ids = (name for name, v in default.items() if name.endswith(("token_id", "token_index")) and _is_count(v))
    return {**small, **dict.fromkeys(ids, VOCABULARY_TOKENS - 12)}


def _small_eyes(default: Mapping[str, Any]) -> dict[str, Any]:
    small: dict[str, Any] = {name: size for name, size in _EYES.items() if _is_count(default.get(name))}
    for name, value in default.items():
        if isinstance(value, dict) and "model_type" in value:
            small[name] = {"model_type": value["model_type"], **_small_eyes(value)}
        elif name in ("deepstack_visual_indexes", "fullatt_block_indexes") and isinstance(value, list):
            small[name] = [0]
    return small


def _is_count(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
