"""MPT's attention: ALiBi, with queries, keys and values that may be clipped."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from transformers.models.mpt.modeling_mpt import MptAttention, MptModel, build_mpt_alibi_tensor

from model_runtime.forward.classic.own_attention import OWN_PREFIX, OwnAttention, by_heads


class OwnMptAttention(OwnAttention, MptAttention):  # type: ignore[misc]
    """`MptAttention` through the attention function."""

    def forward(self, hidden_states: torch.Tensor, *arguments: Any, **more: Any) -> Any:
        """See `MptAttention.forward`."""
        if not self.is_asked:
            return super().forward(hidden_states, *arguments, **more)
        fused = self.Wqkv(hidden_states)
        if self.clip_qkv:
            fused = fused.clamp(min=-self.clip_qkv, max=self.clip_qkv)
        query, key, value = (by_heads(part, self.n_heads) for part in fused.chunk(3, dim=2))
        slopes = mpt_slopes(self.n_heads, hidden_states.device)
        attended = self.attend(query, key, value, self.softmax_scale, alibi_slopes=slopes)
        return self.out_proj(attended.flatten(2)), None


class OwnMptModel(MptModel):  # type: ignore[misc]
    """`MptModel`, which cannot run without a mask of its own, with one that costs nothing and that no layer reads."""

    def forward(self, *arguments: Any, attention_mask: torch.Tensor | None = None, **more: Any) -> Any:
        """See `MptModel.forward`."""
        if str(self.config._attn_implementation).startswith(OWN_PREFIX):
            device = self.wte.weight.device
            attention_mask = torch.zeros((1, 1, 1, 1), dtype=torch.bool, device=device)  # 4-D masks are taken as given
        return super().forward(*arguments, attention_mask=attention_mask, **more)


@lru_cache(maxsize=4)
def mpt_slopes(heads: int, device: torch.device) -> torch.Tensor:
    """float32 `(heads,)`: the slopes of ALiBi as MPT orders them for head counts that are no power of two, read off
    transformers' own table, which begins one position before the last."""
    return torch.as_tensor(build_mpt_alibi_tensor(heads, 2, device=device)[:, 0, 0].neg())
