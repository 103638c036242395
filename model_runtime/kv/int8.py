"""KV rows at 8 bits for the tiers below the device: keys with a scale a channel, values with a scale a token.

Keys have channels that are large for every token, values have tokens that are large in every channel (KIVI,
arXiv:2402.02750); each gets the scale that keeps its outliers from costing everybody else precision. A key's scale
holds for 64 tokens, so that what is rounded does not depend on how long a segment is. Symmetric, 127 steps each side.
"""

from __future__ import annotations

import torch

KEY_GROUP_TOKENS = 64
SCALE_DTYPE = torch.float16
_SMALLEST_SCALE = 1e-6  # float16 holds it; rows of zeros have no scale of their own


def key_groups(tokens: int) -> int:
    """Scales a channel has for so many tokens."""
    return -(-tokens // KEY_GROUP_TOKENS)


def quantise_keys(rows: torch.Tensor, into: torch.Tensor, scales: torch.Tensor) -> None:
    """`rows (heads, tokens, dim)` as int8 `into` of the same shape, with float16 `scales (heads, groups, dim)`."""
    for group in range(scales.shape[1]):
        part = slice(group * KEY_GROUP_TOKENS, (group + 1) * KEY_GROUP_TOKENS)
        piece = rows[:, part].float()
        scales[:, group] = (piece.abs().amax(1) / 127).clamp_(min=_SMALLEST_SCALE)
        into[:, part] = _rounded(piece, scales[:, group].float()[:, None])


def quantise_values(rows: torch.Tensor, into: torch.Tensor, scales: torch.Tensor) -> None:
    """`rows (heads, tokens, dim)` as int8 `into` of the same shape, with float16 `scales (heads, tokens)`."""
    piece = rows.float()
    scales.copy_((piece.abs().amax(2) / 127).clamp_(min=_SMALLEST_SCALE))
    into.copy_(_rounded(piece, scales.float()[:, :, None]))


def restore_keys(stored: torch.Tensor, scales: torch.Tensor, into: torch.Tensor) -> None:
    """The inverse of `quantise_keys`, as far as 8 bits go."""
    for group in range(scales.shape[1]):
        part = slice(group * KEY_GROUP_TOKENS, (group + 1) * KEY_GROUP_TOKENS)
        into[:, part] = stored[:, part].float() * scales[:, group].float()[:, None]


def restore_values(stored: torch.Tensor, scales: torch.Tensor, into: torch.Tensor) -> None:
    """The inverse of `quantise_values`, as far as 8 bits go."""
    into.copy_(stored.float() * scales.float()[:, :, None])


def _rounded(rows: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return (rows / scales).round_().clamp_(-127, 127).to(torch.int8)
