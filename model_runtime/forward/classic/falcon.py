"""Falcon's attention: one key head (7B), one for each group of queries (40B, 180B, 11B) or for each query, with rotary
positions or ALiBi."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from transformers.models.falcon.modeling_falcon import FalconAttention, apply_rotary_pos_emb, build_alibi_tensor

from model_runtime.forward.classic.own_attention import OwnAttention


class OwnFalconAttention(OwnAttention, FalconAttention):  # type: ignore[misc]
    """`FalconAttention` through the attention function."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        alibi: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        position_embeddings: Any = None,
        **more: Any,
    ) -> Any:
        """See `FalconAttention.forward`. `alibi`, which the model computes for the packed row, only says whether this
        model has rotary positions."""
        if not self.is_asked:
            return super().forward(
                hidden_states, alibi, attention_mask, position_embeddings=position_embeddings, **more
            )
        query, key, value = self._split(self.query_key_value(hidden_states))
        biases = None
        if alibi is None:
            query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        else:
            biases = falcon_biases(self.max_position_embeddings, self.num_heads, self.head_dim, hidden_states.device)
        attended = self.attend(query, key, value, key_biases=biases)
        return self.dense(attended.flatten(2)), None

    def _split(self, fused: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`(1, T, all heads * dim)` -> queries `(1, heads, T, dim)`, keys and values `(1, kv_heads, T, dim)`. Each key
        head's group lies together: its queries, its key, its value."""
        groups = self.num_heads
        if self.new_decoder_architecture:
            groups = self.num_kv_heads
        elif self.multi_query:
            groups = 1
        grouped = fused.reshape(*fused.shape[:2], groups, self.num_heads // groups + 2, self.head_dim)
        query, key, value = grouped[..., :-2, :].flatten(2, 3), grouped[..., -2, :], grouped[..., -1, :]
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


@lru_cache(maxsize=4)
def falcon_biases(positions: int, heads: int, head_dim: int, device: torch.device) -> torch.Tensor:
    """float32 `(heads, positions)`: Falcon's ALiBi (Press et al. 2021), read off transformers' own table. Falcon rounds
    it to bfloat16 by the key's position, so beyond 256 positions it is no slope times a distance."""
    all_seen = torch.ones((1, positions), dtype=torch.int64, device=device)
    return torch.as_tensor(build_alibi_tensor(all_seen, heads, torch.float32)[:, 0] / math.sqrt(head_dim))
