"""The decoder layouts that our own forwards compute (Llama, Qwen2, Qwen3; on a CPU Gemma 3 too): which models have
them, and where their layers keep their matrices and norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from model_runtime.architecture.layer_settings import differs_by_layer
from model_runtime.architecture.rope import has_fixed_rope

SLIDING = "sliding_attention"  # layers that see a window only
_ARCHITECTURES = ("llama", "qwen2", "qwen3")
PROJECTIONS = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def has_common_layout(model: PreTrainedModel) -> bool:
    """Whether its layers are RMSNorm, rotary positions with fixed frequencies, full attention, and a gated MLP with
    SiLU, and not those of a part of a larger model."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    return (
        config.model_type in _ARCHITECTURES
        and not differs_by_layer(config)
        and config.hidden_act == "silu"
        and all(kind == "full_attention" for kind in kinds)
        and isinstance(getattr(getattr(model, "model", None), "layers", None), nn.ModuleList)
        and has_fixed_rope(config)
    )


def has_gemma_layout(model: PreTrainedModel) -> bool:
    """Whether it is Gemma 3's text model: the common layout, but for norms behind attention and MLP too, GELU, and some
    layers that see a window only and have rotary frequencies of their own."""
    config = model.config.get_text_config()
    return (
        config.model_type == "gemma3_text"
        and not differs_by_layer(config)
        and config.hidden_activation == "gelu_pytorch_tanh"
        and set(config.layer_types) <= {"full_attention", SLIDING}
        and not getattr(config, "use_bidirectional_attention", False)
        and config.attn_logit_softcapping is None
        and config.final_logit_softcapping is None
        and isinstance(getattr(getattr(model, "model", None), "layers", None), nn.ModuleList)
        and has_fixed_rope(config)
    )


@dataclass(frozen=True, slots=True)
class Norms:
    """A layer's norms over hidden states: before attention and MLP, and of what these add, where there are any."""

    before_attention: Any
    before_mlp: Any
    after_attention: Any = None
    after_mlp: Any = None


def norms_of(layer: Any) -> Norms:
    """Of a layer of either layout."""
    if not hasattr(layer, "pre_feedforward_layernorm"):
        return Norms(layer.input_layernorm, layer.post_attention_layernorm)
    return Norms(
        layer.input_layernorm,
        layer.pre_feedforward_layernorm,
        layer.post_attention_layernorm,
        layer.post_feedforward_layernorm,
    )


def norm_factors(norm: Any) -> torch.Tensor:
    """What a norm multiplies by, float32: Gemma's are stored less one."""
    weight: torch.Tensor = norm.weight.detach().float()
    return (1.0 + weight if type(norm).__name__ == "Gemma3RMSNorm" else weight).contiguous()


def rope_kinds(config: Any) -> tuple[str, ...]:
    """The kinds of layers that have rotary frequencies of their own, as the model's rotary module calls them; one empty
    name where all have the same."""
    return tuple(sorted(set(config.layer_types))) if config.model_type == "gemma3_text" else ("",)


def rotary_tables(rotary: nn.Module, config: Any, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of int64 `places` `[1, n]`, float32 `[kinds, n, head_dim]` each."""
    x = torch.empty(1, 1, config.hidden_size, device=places.device)
    tables = [rotary(x, places, *([kind] if kind else [])) for kind in rope_kinds(config)]
    return torch.cat([cosine for cosine, _ in tables]), torch.cat([sine for _, sine in tables])


def projections_of(layer: nn.Module) -> dict[str, Any]:
    """A layer's matrices, by what they compute."""
    return {name: layer.get_submodule(path) for name, path in PROJECTIONS.items()}


def head_norms_of(layer: Any) -> tuple[Any, Any]:
    """The norms of a layer's query heads and key heads (Qwen3), None if there are none."""
    return getattr(layer.self_attn, "q_norm", None), getattr(layer.self_attn, "k_norm", None)


def head_dim_of(config: Any) -> int:
    """The width of a head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
