"""The attention of a packed forward: many conversations in one `[1, T]` row, each against its own KV slab.

Registered with transformers' `AttentionInterface` under `ATTENTION_NAME`. No mask function of that name exists, so
transformers builds no mask; masking happens here. The batch reaches this function as a keyword argument of the model's
forward, never through a global.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from model_runtime.kv.slab import KVSlab

ATTENTION_NAME = "keepwarm_packed"


class StepAborted(Exception):
    """Raised between two layers when this forward is no longer wanted. No slab was changed: rows beyond a slab's length
    are garbage by definition."""


@dataclass(frozen=True, slots=True)
class Span:
    """Positions `start..start + tokens` of the packed row belong to `slab`, after the `past_tokens` it holds."""

    slab: KVSlab
    start: int
    tokens: int
    past_tokens: int


class AttentionBatch(Protocol):
    """One packed forward as its attention sees it. `abort_if` is called once per layer. `layers_seen` lists the layers
    that called, each expected once. Slabs and the arena each have an implementation."""

    abort_if: Callable[[], bool]
    layers_seen: list[int]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """Stores the new keys and values `(1, kv_heads, T, dim)` and attends `query (1, heads, T, dim)` to those of its
        own conversation: `(1, T, heads, value_dim)`."""


@dataclass(slots=True)
class PackedBatch:
    """An `AttentionBatch` over slabs: SDPA for each span."""

    spans: Sequence[Span]
    abort_if: Callable[[], bool] = lambda: False
    layers_seen: list[int] = field(default_factory=list)
    _masks: dict[tuple[int, int, int | None], torch.Tensor] = field(default_factory=dict)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """See `AttentionBatch`. The caller advances each slab's length after the last layer."""
        output = query.new_empty((1, query.shape[2], query.shape[1], value.shape[3]))
        for span in self.spans:
            rows = slice(span.start, span.start + span.tokens)
            end = span.past_tokens + span.tokens
            slab_keys, slab_values = span.slab.keys[layer], span.slab.values[layer]
            slab_keys[:, span.past_tokens : end] = key[0, :, rows]
            slab_values[:, span.past_tokens : end] = value[0, :, rows]
            attended = _attend(query[0, :, rows], slab_keys[:, :end], slab_values[:, :end], span, self, scaling, window)
            output[0, rows] = attended.transpose(0, 1)
        return output

    def mask(self, span: Span, window: int | None, like: torch.Tensor) -> torch.Tensor:
        """Additive bottom-right causal mask `(tokens, past + tokens)` in `like`'s dtype, shared by all layers."""
        key = (span.tokens, span.past_tokens, window)
        mask = self._masks.get(key)
        if mask is None:
            mask = self._masks[key] = causal_mask(span.tokens, span.past_tokens, window, like)
        return mask


def causal_mask(tokens: int, past_tokens: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
    """0 where query row i (position `past + i`) may see key j: `j <= past + i`, and with a sliding window also
    `j > past + i - window`; -inf elsewhere."""
    total = past_tokens + tokens
    mask = like.new_full((tokens, total), -math.inf).triu_(past_tokens + 1)
    if window is not None and window < total:
        positions = torch.arange(total, device=like.device)
        rows = torch.arange(past_tokens, total, device=like.device)[:, None]
        mask.masked_fill_(positions[None, :] <= rows - window, -math.inf)
    return mask


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    packed: AttentionBatch | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """`query (1, heads, T, key_dim)`, `key` and `value` `(1, kv_heads, T, dim)` -> `(1, T, heads, value_dim)`.

    Appends the keys and values of every conversation to its own rows, then attends. Raises `StepAborted`, or
    `ValueError` for attention that it cannot compute.
    """
    if packed is None:
        raise ValueError("packed attention was called without a batch")
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise ValueError(f"its attention uses {name}, which the packed kernel does not compute")
    if packed.abort_if():
        raise StepAborted
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    packed.layers_seen.append(layer)
    return packed.attend(layer, query, key, value, scaling, sliding_window), None


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    span: Span,
    packed: PackedBatch,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """`query (heads, t, dim)` against `keys`/`values` `(kv_heads, n, dim)` -> `(heads, t, value_dim)`.

    KV heads become the batch and the query heads of a group its heads, over a stride-0 view of the keys: grouped-query
    attention without repeating K and V, with one parallel task per query head.
    """
    heads, tokens, dim = query.shape
    kv_heads = keys.shape[0]
    mask = None
    if tokens > 1:
        mask = packed.mask(span, window, query)
    elif window is not None:
        keys, values = keys[:, -window:], values[:, -window:]
    groups = heads // kv_heads
    attended = F.scaled_dot_product_attention(
        query.view(kv_heads, groups, tokens, dim),
        keys[:, None].expand(-1, groups, -1, -1),
        values[:, None].expand(-1, groups, -1, -1),
        attn_mask=mask,
        scale=scaling,
    )
    return attended.reshape(heads, tokens, values.shape[2])


AttentionInterface.register(ATTENTION_NAME, packed_attention)
