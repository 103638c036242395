"""An attention module that asks the attention function which its model was set to, as newer models' modules do."""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

OWN_PREFIX = "keepwarm_"  # of the names of Keepwarm's attention functions


class OwnAttention:
    """Comes first among the bases of a class that extends one of transformers' attention modules. Its instances were
    built as that module: `replace_attention` changes their class, so they keep their weights, and sets the two
    attributes below. While the model is set to transformers' own attention, they compute what they always did."""

    layer_idx: int
    model_config: Any

    @property
    def is_asked(self) -> bool:
        """Whether the model is set to one of Keepwarm's attention functions."""
        return str(self.model_config._attn_implementation).startswith(OWN_PREFIX)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None = None,
        window: int | None = None,
        **options: torch.Tensor | None,
    ) -> torch.Tensor:
        """`query (1, heads, T, dim)` and the new `key` and `value (1, kv_heads, T, dim)`, positions applied, through
        the attention function: `(1, T, heads, dim)`. `scaling` is 1 / sqrt(dim) if None; `options` are those of
        `packed_attention`."""
        function = ALL_ATTENTION_FUNCTIONS[self.model_config._attn_implementation]
        attended, _ = function(self, query, key, value, None, scaling=scaling, sliding_window=window, **options)
        return torch.as_tensor(attended)


def by_heads(projected: torch.Tensor, heads: int) -> torch.Tensor:
    """`(1, T, heads * dim)` -> `(1, heads, T, dim)`."""
    return projected.reshape(*projected.shape[:2], heads, -1).transpose(1, 2)
