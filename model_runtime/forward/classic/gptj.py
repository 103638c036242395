"""The attention of GPT-J and CodeGen: rotary positions for the first part of each head, from a table."""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.codegen.modeling_codegen import CodeGenAttention
from transformers.models.gptj.modeling_gptj import GPTJAttention

from model_runtime.forward.classic.own_attention import OwnAttention


class _Asking(OwnAttention):
    """What both compute after queries, keys and values are split and rotated."""

    def _attn(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any = None) -> Any:
        """`(1, heads, T, dim)` each -> the same shape. Rotating in float32 leaves queries and keys of a 16-bit model in
        float32; they are rounded to the precision that keys are kept in."""
        if not self.is_asked:
            return super()._attn(query, key, value, attention_mask)  # type: ignore[misc]
        attended = self.attend(query.to(value.dtype), key.to(value.dtype), value)
        return attended.transpose(1, 2), None


class OwnGPTJAttention(_Asking, GPTJAttention):  # type: ignore[misc]
    """`GPTJAttention` through the attention function."""


class OwnCodeGenAttention(_Asking, CodeGenAttention):  # type: ignore[misc]
    """`CodeGenAttention` through the attention function."""
