"""The attention of GPT-NeoX Japanese: rotary positions for a part of each head."""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.gpt_neox_japanese.modeling_gpt_neox_japanese import GPTNeoXJapaneseAttention

from model_runtime.forward.classic.own_attention import OwnAttention


class OwnGPTNeoXJapaneseAttention(OwnAttention, GPTNeoXJapaneseAttention):  # type: ignore[misc]
    """`GPTNeoXJapaneseAttention` through the attention function."""

    def _attn(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any = None) -> Any:
        """`(1, heads, T, dim)` each -> the same shape."""
        if not self.is_asked:
            return super()._attn(query, key, value, attention_mask)
        return self.attend(query, key, value).transpose(1, 2), None
