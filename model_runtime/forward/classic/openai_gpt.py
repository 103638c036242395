"""The first GPT's attention: plain, with positions in the embeddings."""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.openai.modeling_openai import Attention

from model_runtime.forward.classic.own_attention import OwnAttention


class OwnGPTAttention(OwnAttention, Attention):  # type: ignore[misc]
    """OpenAI GPT's `Attention` through the attention function."""

    def _attn(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *arguments: Any, **more: Any
    ) -> list[torch.Tensor]:
        """`query` and `value (1, heads, T, dim)`, `key (1, heads, dim, T)` -> `(1, heads, T, dim)` in a list."""
        if not self.is_asked:
            stock: list[torch.Tensor] = super()._attn(query, key, value, *arguments, **more)
            return stock
        attended = self.attend(query, key.transpose(2, 3), value, None if self.scale else 1.0)
        return [attended.transpose(1, 2)]
