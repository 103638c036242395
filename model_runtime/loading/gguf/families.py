"""The architectures whose GGUF files Keepwarm reads, and what each of their metadata keys means for transformers.

Sources: llama.cpp's src/models/*.cpp for the keys that an architecture reads and their defaults, transformers' configs
for what they set. A key that no function here takes refuses the file (`Metadata.refuse_rest`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from model_runtime.loading.gguf.metadata import Metadata
from model_runtime.loading.gguf.positions import rope_parameters

Settings = dict[str, Any]
_GEMMA_QUERY_SCALAR = 256  # what transformers' configs and all published Gemma 2 and 3 but the 27B models have
_GEMMA_27B_LAYERS = {"gemma2": 46, "gemma3": 62}
_SOFTMAX = 1  # llama.cpp's `LLAMA_EXPERT_GATING_FUNC_TYPE_SOFTMAX`
# What some tools write for every architecture: these have nothing of the kind, and nothing to scale.
_COUNTS = (
    *("expert_count", "expert_used_count", "expert_shared_count", "expert_group_count", "expert_group_used_count"),
    *("leading_dense_block_count", "nextn_predict_layers"),
)
_SCALES = ("embedding_scale", "logit_scale", "residual_scale")
_FULL, _SLIDING = "full_attention", "sliding_attention"


def settings_of(metadata: Metadata) -> Settings:
    """The arguments of transformers' config, `model_type` among them. Raises `ModelLoadError` for a key that is not
    supported."""
    found = FAMILIES[metadata.header.architecture](metadata)
    for key in _COUNTS:
        metadata.expect(key, 0)
    for key in _SCALES:
        metadata.expect(key, 0.0, 1.0)  # llama.cpp scales by neither
    metadata.refuse_rest()
    return found


def _decoder(metadata: Metadata, *, may_be_partial: bool = False, inner: bool = True) -> Settings:
    """What all of them state."""
    metadata.expect("attention.causal", True)
    metadata.ignore("tensor_data_layout", "pooling_type")
    width, heads = metadata.count("embedding_length"), metadata.count("attention.head_count")
    head_dim = metadata.count("attention.key_length", width // max(heads, 1))
    metadata.expect("attention.value_length", head_dim)
    metadata.expect("attention.scale", 0.0, max(head_dim, 1) ** -0.5)
    context = metadata.count("context_length")
    found = {
        "hidden_size": width,
        "num_hidden_layers": metadata.count("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.count("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": context,
        "rope_parameters": rope_parameters(metadata, head_dim, context, may_be_partial=may_be_partial),
    }
    if inner:
        found["intermediate_size"] = metadata.count("feed_forward_length")
    return found


def _rms(metadata: Metadata) -> Settings:
    metadata.ignore("attention.layer_norm_epsilon")  # converters write what the config has, used or not
    return {"rms_norm_eps": metadata.number("attention.layer_norm_rms_epsilon")}


def _layer_norm(metadata: Metadata) -> float:
    return metadata.number("attention.layer_norm_epsilon")


def _biases(metadata: Metadata) -> Settings:
    attention = metadata.has_tensor("attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias")
    return {"attention_bias": True} if attention else {}


def _llama(metadata: Metadata) -> Settings:
    """Llama, Mistral and Mixtral have the same architecture in GGUF."""
    found = {"model_type": "llama", **_decoder(metadata), **_rms(metadata), **_biases(metadata)}
    if metadata.has_tensor("ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"):
        found["mlp_bias"] = True
    window = _window(metadata, found)
    experts = metadata.count("expert_count", 0)
    used = metadata.count("expert_used_count", 0)
    if window or experts:
        for key in ("attention_bias", "mlp_bias"):
            found.pop(key, None)  # such tensors are then refused: transformers' classes have no place for them
        found |= {"model_type": "mistral", "sliding_window": window or None}
    if experts:
        _softmax_experts(metadata, normalised=True)
        metadata.expect("expert_feed_forward_length", found["intermediate_size"])
        found |= {"model_type": "mixtral", "num_local_experts": experts, "num_experts_per_tok": used}
    return found


def _qwen(model_type: str) -> Callable[[Metadata], Settings]:
    def settings(metadata: Metadata) -> Settings:
        found = {"model_type": model_type, **_decoder(metadata), **_rms(metadata)}
        if model_type == "qwen3":
            found |= _biases(metadata)
        return found | _sliding_layers(metadata, found, period=0)

    return settings


def _qwen_moe(model_type: str, *, normalised: bool) -> Callable[[Metadata], Settings]:
    """`normalised`: whether llama.cpp divides the weights of the chosen experts by their sum."""

    def settings(metadata: Metadata) -> Settings:
        found = {"model_type": model_type, **_decoder(metadata, inner=False), **_rms(metadata)}
        _softmax_experts(metadata, normalised=normalised)
        inner = metadata.count("feed_forward_length", 0)
        expert_inner = metadata.count("expert_feed_forward_length", inner)
        found |= {
            "intermediate_size": inner or expert_inner,
            "moe_intermediate_size": expert_inner,
            "num_experts": metadata.count("expert_count"),
            "num_experts_per_tok": metadata.count("expert_used_count"),
            "norm_topk_prob": normalised,
            "sliding_window": None,
            "use_sliding_window": False,
        }
        if model_type == "qwen2_moe":
            found["shared_expert_intermediate_size"] = metadata.count("expert_shared_feed_forward_length", inner)
            found["qkv_bias"] = metadata.has_tensor("attn_q.bias", "attn_k.bias", "attn_v.bias")
        else:
            found |= _biases(metadata)
        return found

    return settings


def _softmax_experts(metadata: Metadata, *, normalised: bool) -> None:
    metadata.expect("expert_gating_func", _SOFTMAX)
    metadata.expect("expert_weights_norm", normalised)
    metadata.expect("expert_weights_scale", 0.0, 1.0)
    metadata.expect("expert_shared_count", 0, 1)
    metadata.expect("expert_group_count", 0, 1)
    metadata.expect("expert_group_used_count", 0, 1)


def _gemma(model_type: str, period: int) -> Callable[[Metadata], Settings]:
    def settings(metadata: Metadata) -> Settings:
        scale = metadata.number("attention.scale", 0.0)
        found = {"model_type": model_type, **_decoder(metadata), **_rms(metadata)}
        found["query_pre_attn_scalar"] = _scalar_of(metadata, scale) if scale else _gemma_scalar(metadata, found)
        window = metadata.count("attention.sliding_window", 4096 if model_type == "gemma2" else 0)
        slides = metadata.pattern("attention.sliding_window_pattern", found["num_hidden_layers"], period)
        if window:
            found |= {"sliding_window": window, "layer_types": [_SLIDING if slide else _FULL for slide in slides]}
        else:
            found["layer_types"] = [_FULL] * found["num_hidden_layers"]
        if model_type == "gemma2":
            attention, final = 50.0, 30.0
            found["attn_logit_softcapping"] = metadata.number("attn_logit_softcapping", attention) or None
            found["final_logit_softcapping"] = metadata.number("final_logit_softcapping", final) or None
            local = metadata.number("rope.freq_base_swa", found["rope_parameters"]["rope_theta"])
            if local != found["rope_parameters"]["rope_theta"]:
                metadata.refuse("rope.freq_base_swa", local)
        else:
            found["final_logit_softcapping"] = metadata.number("final_logit_softcapping", 0.0) or None
            metadata.expect("attn_logit_softcapping", 0.0)
            local = metadata.number("rope.freq_base_swa", 10_000.0)
            found["rope_parameters"] = {
                _FULL: found["rope_parameters"],
                _SLIDING: {"rope_type": "default", "rope_theta": local},
            }
        return found

    return settings


def _scalar_of(metadata: Metadata, scale: float) -> int:
    """Transformers has the scale of queries as 1/sqrt of a whole number."""
    scalar = round(scale**-2)
    if scalar <= 0 or not math.isclose(scalar**-0.5, scale, rel_tol=1e-5):
        metadata.refuse("attention.scale", scale)
    return scalar


def _gemma_scalar(metadata: Metadata, found: Settings) -> int:
    """Files do not state the scale of Gemma's queries. llama.cpp takes the width of a head, and for 27B models that of
    the hidden state divided by the heads; of the published models both are 256 but for 27B."""
    if found["num_hidden_layers"] == _GEMMA_27B_LAYERS[metadata.header.architecture]:
        return int(found["hidden_size"]) // int(found["num_attention_heads"])
    if found["head_dim"] != _GEMMA_QUERY_SCALAR:
        metadata.notes.append(
            f"The file does not state the scale of its queries (attention.scale): 1/sqrt({_GEMMA_QUERY_SCALAR}) is "
            "used, as in Google's models."
        )
    return _GEMMA_QUERY_SCALAR


def _phi3(metadata: Metadata) -> Settings:
    found = {"model_type": "phi3", **_decoder(metadata, may_be_partial=True), **_rms(metadata)}
    original = found["rope_parameters"].get("original_max_position_embeddings", found["max_position_embeddings"])
    return found | {
        "sliding_window": _window(metadata, found) or None,
        "original_max_position_embeddings": original,
    }


def _starcoder2(metadata: Metadata) -> Settings:
    found = {"model_type": "starcoder2", **_decoder(metadata), "norm_epsilon": _layer_norm(metadata)}
    return found | {"sliding_window": _window(metadata, found) or None, "use_bias": metadata.has_tensor("attn_q.bias")}


def _stablelm(metadata: Metadata) -> Settings:
    found = {"model_type": "stablelm", **_decoder(metadata, may_be_partial=True)}
    parallel = not metadata.has_tensor("ffn_norm.weight")
    metadata.expect("use_parallel_residual", parallel)
    return found | {
        "layer_norm_eps": _layer_norm(metadata),
        "use_parallel_residual": parallel,
        "use_qkv_bias": metadata.has_tensor("attn_q.bias", "attn_k.bias", "attn_v.bias"),
    }


def _nemotron(metadata: Metadata) -> Settings:
    found = {"model_type": "nemotron", **_decoder(metadata, may_be_partial=True), "norm_eps": _layer_norm(metadata)}
    if metadata.has_tensor("ffn_up.bias", "ffn_down.bias"):
        found["mlp_bias"] = True
    return found | _biases(metadata)


def _falcon(metadata: Metadata) -> Settings:
    found = {"model_type": "falcon", **_decoder(metadata, inner=False), "layer_norm_epsilon": _layer_norm(metadata)}
    kv_heads, head_dim = found.pop("num_key_value_heads"), found.pop("head_dim")
    if head_dim * found["num_attention_heads"] != found["hidden_size"]:
        metadata.refuse("attention.key_length", head_dim)
    two_norms = metadata.has_tensor("attn_norm_2.weight")
    return found | {
        "ffn_hidden_size": metadata.count("feed_forward_length", 4 * found["hidden_size"]),
        "num_kv_heads": kv_heads,
        "new_decoder_architecture": two_norms or kv_heads > 1,
        "num_ln_in_parallel_attn": 2 if two_norms else 1,
        "multi_query": True,
        "parallel_attn": True,
        "bias": metadata.has_tensor("attn_qkv.bias"),
        "alibi": False,
    }


def _bloom(metadata: Metadata) -> Settings:
    width = _without_positions(metadata)
    metadata.expect("feed_forward_length", 4 * width)
    metadata.expect("attention.max_alibi_bias", 8.0)
    heads = metadata.count("attention.head_count")
    metadata.expect("attention.head_count_kv", heads)
    context = metadata.count("context_length")
    return {
        "model_type": "bloom",
        "hidden_size": width,
        "n_layer": metadata.count("block_count"),
        "n_head": heads,
        "seq_length": context,
        "max_position_embeddings": context,
        "layer_norm_epsilon": _layer_norm(metadata),
    }


def _gpt2(metadata: Metadata) -> Settings:
    width = _without_positions(metadata)
    heads = metadata.count("attention.head_count")
    metadata.expect("attention.head_count_kv", heads)
    return {
        "model_type": "gpt2",
        "n_embd": width,
        "n_layer": metadata.count("block_count"),
        "n_head": heads,
        "n_positions": metadata.count("context_length"),
        "n_inner": metadata.count("feed_forward_length", 4 * width),
        "layer_norm_epsilon": _layer_norm(metadata),
    }


def _without_positions(metadata: Metadata) -> int:
    """The width of a model that has no rotary positions."""
    metadata.expect("attention.causal", True)
    metadata.ignore("tensor_data_layout", "pooling_type")
    return metadata.count("embedding_length")


def _window(metadata: Metadata, found: Settings) -> int:
    """The window of all layers, 0 if none slides or none can within the context."""
    window = metadata.count("attention.sliding_window", 0)
    return window if window < found["max_position_embeddings"] else 0


def _sliding_layers(metadata: Metadata, found: Settings, period: int) -> Settings:
    slides = metadata.pattern("attention.sliding_window_pattern", found["num_hidden_layers"], period)
    window = _window(metadata, found)
    if not window:
        return {}
    return {
        "use_sliding_window": True,
        "sliding_window": window,
        "layer_types": [_SLIDING if slide else _FULL for slide in slides],
    }


FAMILIES: dict[str, Callable[[Metadata], Settings]] = {
    "llama": _llama,
    "qwen2": _qwen("qwen2"),
    "qwen3": _qwen("qwen3"),
    "qwen2moe": _qwen_moe("qwen2_moe", normalised=False),
    "qwen3moe": _qwen_moe("qwen3_moe", normalised=True),
    "gemma2": _gemma("gemma2", 2),
    "gemma3": _gemma("gemma3_text", 6),
    "phi3": _phi3,
    "starcoder2": _starcoder2,
    "stablelm": _stablelm,
    "nemotron": _nemotron,
    "falcon": _falcon,
    "bloom": _bloom,
    "gpt2": _gpt2,
}
