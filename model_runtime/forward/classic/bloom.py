"""BLOOM's attention: ALiBi over queries, keys and values that lie together by head."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from transformers.models.bloom.modeling_bloom import BloomAttention, build_alibi_tensor

from model_runtime.forward.classic.own_attention import OwnAttention


class OwnBloomAttention(OwnAttention, BloomAttention):  # type: ignore[misc]
    """`BloomAttention` through the attention function."""

    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor, *arguments: Any, **more: Any) -> Any:
        """See `BloomAttention.forward`."""
        if not self.is_asked:
            return super().forward(hidden_states, residual, *arguments, **more)
        query, key, value = self._reshape(self.query_key_value(hidden_states))
        slopes = bloom_slopes(self.num_heads, hidden_states.device)
        attended = self.attend(query, key, value, self.inv_norm_factor, alibi_slopes=slopes)
        return self.dense(attended.flatten(2)) + residual, None


@lru_cache(maxsize=4)
def bloom_slopes(heads: int, device: torch.device) -> torch.Tensor:
    """float32 `(heads,)`: the slopes of ALiBi (Press et al. 2021) as BLOOM continues them for head counts that are no
    power of two, read off transformers' own table."""
    two_positions = torch.ones((1, 2), dtype=torch.int64, device=device)
    return torch.as_tensor(build_alibi_tensor(two_positions, heads, torch.float32)[:, 0, 1])
