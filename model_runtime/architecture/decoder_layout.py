"""The decoder layout that our own forwards compute (Llama, Qwen2, Qwen3): which models have it, and where their layers
keep their matrices."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from model_runtime.architecture.layer_settings import differs_by_layer
from model_runtime.architecture.rope import has_fixed_rope

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


def projections_of(layer: nn.Module) -> dict[str, Any]:
    """A layer's matrices, by what they compute."""
    return {name: layer.get_submodule(path) for name, path in PROJECTIONS.items()}


def head_norms_of(layer: Any) -> tuple[Any, Any]:
    """The norms of a layer's query heads and key heads (Qwen3), None if there are none."""
    return getattr(layer.self_attn, "q_norm", None), getattr(layer.self_attn, "k_norm", None)


def head_dim_of(config: Any) -> int:
    """The width of a head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
