"""KV rows at 8 bits for host memory and disk: keys with a scale per channel, values with a scale per token.

Keys have channels that are large for every token, values have tokens that are large in every channel (KIVI,
arXiv:2402.02750), so each gets the scale that keeps its outliers from costing the other numbers precision. A key's
scale covers 64 tokens, so that rounding does not depend on the length of a segment. Symmetric, 127 steps on each side.
"""

from __future__ import annotations

import torch

KEY_GROUP_TOKENS = 64
SCALE_DTYPE = torch.float16
_SMALLEST_SCALE = 1e-6  # representable in float16; avoids a division by zero for rows of zeros


def key_groups(tokens: int) -> int:
    """How many scales a channel has for `tokens` tokens."""
    return -(-tokens // KEY_GROUP_TOKENS)


def quantise_keys(rows: torch.Tensor, into: torch.Tensor, scales: torch.Tensor) -> None:
    """Writes `rows (heads, tokens, dim)` as int8 to `into`, of the same shape, and float16 `scales (heads, groups,
    dim)`."""
    for group in range(scales.shape[1]):
        part = slice(group * KEY_GROUP_TOKENS, (group + 1) * KEY_GROUP_TOKENS)
        piece = rows[:, part].float()
        scales[:, group] = (piece.abs().amax(1) / 127).clamp_(min=_SMALLEST_SCALE)
        into[:, part] = _rounded(piece, scales[:, group].float()[:, None])


def quantise_values(rows: torch.Tensor, into: torch.Tensor, scales: torch.Tensor) -> None:
    """Writes `rows (heads, tokens, dim)` as int8 to `into`, of the same shape, and float16 `scales (heads, tokens)`."""
    piece = rows.float()
    scales.copy_((piece.abs().amax(2) / 127).clamp_(min=_SMALLEST_SCALE))
    into.copy_(_rounded(piece, scales.float()[:, :, None]))


def restore_keys(stored: torch.Tensor, scales: torch.Tensor, into: torch.Tensor) -> None:
    """The inverse of `quantise_keys`, up to rounding."""
    for group in range(scales.shape[1]):
        part = slice(group * KEY_GROUP_TOKENS, (group + 1) * KEY_GROUP_TOKENS)
        into[:, part] = stored[:, part].float() * scales[:, group].float()[:, None]


def restore_values(stored: torch.Tensor, scales: torch.Tensor, into: torch.Tensor) -> None:
    """The inverse of `quantise_values`, up to rounding."""
    into.copy_(stored.float() * scales.float()[:, :, None])


def _rounded(rows: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return (rows / scales).round_().clamp_(-127, 127).to(torch.int8)
