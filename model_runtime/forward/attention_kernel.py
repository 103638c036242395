"""Asks torch which attention kernel really runs."""

from __future__ import annotations

import torch

from model_runtime.forward.attention_options import PLAIN
from model_runtime.forward.dense_attention import causal_mask
from model_runtime.kv.geometry import KVGeometry

# The values of torch's SDPBackend, which `_fused_sdp_choice` returns.
_NAMES = {0: "math", 1: "flash", 2: "memory-efficient", 3: "cuDNN"}


def kernel_name(geometry: KVGeometry, heads: int) -> str:
    """The kernel that SDPA chooses for this model, such as "SDPA flash (CPU)": for a decode step and for a chunk after
    a history, the two cases of `packed_attention`. Names both if they differ."""
    shape = geometry.layers[0]
    groups = heads // shape.kv_heads
    chosen = []
    for tokens in (1, 8):
        query = torch.zeros(
            (shape.kv_heads, groups, tokens, shape.key_dim), dtype=geometry.dtype, device=geometry.device
        )
        keys = query.new_zeros((shape.kv_heads, 1, 16, shape.key_dim)).expand(-1, groups, -1, -1)
        values = query.new_zeros((shape.kv_heads, 1, 16, shape.value_dim)).expand(-1, groups, -1, -1)
        mask = None if tokens == 1 else causal_mask(tokens, 16 - tokens, PLAIN, query)
        choice = torch._fused_sdp_choice(query, keys, values, mask)
        chosen.append(_NAMES.get(int(choice), f"backend {int(choice)}"))
    name = chosen[0] if chosen[0] == chosen[1] else f"{chosen[0]} decode, {chosen[1]} read"
    return f"SDPA {name} ({geometry.device.type.upper()})"
