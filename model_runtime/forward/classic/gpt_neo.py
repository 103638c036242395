"""GPT-Neo's attention: scores that are not scaled, and a window in every other layer."""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention

from model_runtime.forward.classic.own_attention import OwnAttention


class OwnGPTNeoAttention(OwnAttention, GPTNeoSelfAttention):  # type: ignore[misc]
    """`GPTNeoSelfAttention` through the attention function."""

    def _attn(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any = None) -> Any:
        """`(1, heads, T, dim)` each -> the same shape."""
        if not self.is_asked:
            return super()._attn(query, key, value, attention_mask)
        window = int(self.config.window_size) if self.attention_type == "local" else None
        return self.attend(query, key, value, 1.0, window).transpose(1, 2), None
