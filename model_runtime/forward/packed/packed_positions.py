"""Tells layers that count positions themselves where each row of a packed forward is.

Llama 4 scales the queries of some layers by their position, which it counts from the number of tokens in its cache: the
rows of a packed forward belong to many conversations, and each has a position of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache, PreTrainedModel


def counts_positions(model: PreTrainedModel) -> bool:
    """Whether a layer counts positions from its cache's length."""
    return any(
        bool(getattr(module, "attn_temperature_tuning", False)) and not getattr(module, "use_rope", True)
        for module in model.modules()
    )


class PackedPositions(Cache):  # type: ignore[misc]  # transformers declares it as Any
    """Stands in for a model's cache in one packed forward: row i "comes after" `position - i` tokens, so that a layer
    which adds i gets its position. Keys and values pass through; the packed attention stores them."""

    def __init__(self, positions: torch.Tensor) -> None:
        super().__init__(layers=[])
        self._before = positions - torch.arange(len(positions), device=positions.device)

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        """int64 `(rows,)`."""
        return self._before

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *arguments: Any, **named: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keeps nothing."""
        return key_states, value_states


def cache_for(positions: torch.Tensor, is_counting: bool) -> dict[str, PackedPositions]:
    """The argument for a model's forward of rows at `positions (rows,)`; none unless `counts_positions`."""
    return {"past_key_values": PackedPositions(positions)} if is_counting else {}
