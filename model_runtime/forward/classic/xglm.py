"""XGLM's attention: plain, with positions in the embeddings."""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.xglm.modeling_xglm import XGLMAttention

from model_runtime.forward.classic.own_attention import OwnAttention, by_heads


class OwnXGLMAttention(OwnAttention, XGLMAttention):  # type: ignore[misc]
    """`XGLMAttention` through the attention function."""

    def forward(self, hidden_states: torch.Tensor, *arguments: Any, **more: Any) -> Any:
        """See `XGLMAttention.forward`, without an encoder's states."""
        if not self.is_asked:
            return super().forward(hidden_states, *arguments, **more)
        query = by_heads(self.q_proj(hidden_states), self.num_heads)
        key = by_heads(self.k_proj(hidden_states), self.num_heads)
        value = by_heads(self.v_proj(hidden_states), self.num_heads)
        return self.out_proj(self.attend(query, key, value, self.scaling).flatten(2)), None
