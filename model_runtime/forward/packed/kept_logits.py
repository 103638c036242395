"""The rows of a forward's logits that were asked for."""

from __future__ import annotations

import torch


def kept_logits(logits: torch.Tensor, rows: torch.Tensor, tokens: int) -> torch.Tensor:
    """Of `logits (tokens or len(rows), vocabulary)` those of `rows`, places among the forward's `tokens`. Some classes
    (VideoLLaMA 3, Qwen 3 Omni) ignore `logits_to_keep` and return every row."""
    return logits[rows] if len(logits) == tokens != len(rows) else logits
