"""Attention of variable lengths in plain torch: the reference for the kernels of a GPU, and their twin on a CPU."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch

from model_runtime.forward.arena.varlen import VarlenKernel


def reference_varlen(*arguments: Any, **named: Any) -> torch.Tensor:
    """`reference_with_lse` without the sums."""
    return reference_with_lse(*arguments, **named)[0]


def reference_with_lse(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    seqused_k: torch.Tensor | None = None,
    alibi_slopes: torch.Tensor | None = None,
    key_biases: torch.Tensor | None = None,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes the same in plain torch, sequence by sequence: any device, any dtype, any head dimension. A row that
    sees no key gets zeros and infinity, as in the kernel. Raises `ValueError` for lengths beyond the bounds, which the
    kernel would silently truncate."""
    begins_q, begins_k = cu_seq_q.tolist(), cu_seq_k.tolist()
    used = [b - a for a, b in pairwise(begins_k)] if seqused_k is None else seqused_k.tolist()
    groups = query.shape[1] // key.shape[1]
    output = query.new_empty((query.shape[0], query.shape[1], value.shape[2]))
    lse = torch.empty((query.shape[1], query.shape[0]), dtype=torch.float32, device=query.device)
    scale = query.shape[2] ** -0.5 if scale is None else scale
    for place, keys in enumerate(used):
        rows = slice(begins_q[place], begins_q[place + 1])
        span = slice(begins_k[place], begins_k[place] + keys)
        tokens = rows.stop - rows.start
        if tokens > max_q or keys > max_k:
            raise ValueError(f"sequence {place} has {tokens} rows and {keys} keys, beyond {max_q} and {max_k}")
        folded = query[rows].view(tokens, key.shape[1], groups, query.shape[2]).permute(1, 2, 0, 3)
        scores = torch.einsum("hgtd,khd->hgtk", folded.float(), key[span].float()) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if alibi_slopes is not None:
            slopes = alibi_slopes.view(key.shape[1], groups, 1, 1)
            scores = scores + slopes * _distances(tokens, keys, query.device)
        if key_biases is not None:
            scores = scores + key_biases[:, :keys].view(key.shape[1], groups, 1, keys)
        scores.masked_fill_(_hidden(tokens, keys, window_size, query.device), -math.inf)
        sums = scores.logsumexp(-1).flatten(0, 1)
        lse[:, rows] = sums.masked_fill(sums == -math.inf, math.inf)
        weights = torch.softmax(scores, -1).nan_to_num(0.0)
        attended = torch.einsum("hgtk,khd->thgd", weights, value[span].float())
        output[rows] = attended.reshape(tokens, query.shape[1], value.shape[2]).to(output.dtype)
    return output, lse


def _hidden(tokens: int, keys: int, sides: tuple[int, int], device: torch.device) -> torch.Tensor:
    """bool `(tokens, keys)`: row i is at key `keys - tokens + i` and sees `sides` keys to its left and right, -1 for
    all."""
    distance = _distances(tokens, keys, device)
    left, right = sides
    hidden = torch.zeros_like(distance, dtype=torch.bool)
    if left >= 0:
        hidden |= distance < -left
    if right >= 0:
        hidden |= distance > right
    return hidden


def _distances(tokens: int, keys: int, device: torch.device) -> torch.Tensor:
    """`(tokens, keys)`: key position minus query position."""
    return torch.arange(keys, device=device)[None] - torch.arange(keys - tokens, keys, device=device)[:, None]


REFERENCE = VarlenKernel(
    "reference varlen",
    reference_varlen,
    reference_with_lse,
    waits=True,
    named=frozenset({"alibi_slopes", "key_biases", "softcap"}),
)
