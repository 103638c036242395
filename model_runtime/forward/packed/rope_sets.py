"""Gives every conversation of a packed forward its own rotary frequencies, for models with long RoPE.

transformers chooses the short or the long frequencies by the largest position of the whole batch. In a packed forward
each conversation needs the set that its rows in the KV have. The model's own module computes both: called with
positions below the boundary only it gives the short set, and with one position at the boundary added the long one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from model_runtime.architecture.rope import LONG_ROPE, short_rope_tokens
from model_runtime.kv.slab import KVSlab

_ROWS: ContextVar[Sequence[tuple[KVSlab, int]] | None] = ContextVar("keepwarm_rope_rows", default=None)


def separate_rope_sets(model: PreTrainedModel) -> int | None:
    """Makes the rotary modules of a model with long RoPE obey `rows_of`; outside of it they stay transformers' own. Up
    to how many tokens the short frequencies are used; None without long RoPE. May be called again."""
    short_tokens = short_rope_tokens(model.config.get_text_config())
    if short_tokens is not None:
        for module in model.modules():
            kinds = getattr(module, "rope_type", None)
            if LONG_ROPE in (kinds.values() if isinstance(kinds, dict) else (kinds,)):
                module.forward = partial(_by_rows, module, short_tokens)
    return short_tokens


@contextmanager
def rows_of(spans: Sequence[tuple[KVSlab, int]]) -> Iterator[None]:
    """A context in which this thread's forwards have these KVs' next rows, as many as given, in this order. Raises
    `ValueError` for rows that a KV with short frequencies cannot hold."""
    for slab, tokens in spans:
        slab.check_rope(tokens)
    token = _ROWS.set(spans)
    try:
        yield
    finally:
        _ROWS.reset(token)


def _by_rows(module: nn.Module, short_tokens: int, x: torch.Tensor, position_ids: torch.Tensor, **more: Any) -> Any:
    """cos and sin `(1, T, dim)` for positions `(1, T)`."""
    stock = partial(type(module).forward, module, x)
    spans = _ROWS.get()
    if spans is None:
        return stock(position_ids, **more)
    is_long = [long for slab, tokens in spans for long in repeat(slab.is_long_rope, tokens)]
    if not any(is_long):
        return stock(position_ids, **more)
    boundary = position_ids.new_full((*position_ids.shape[:-1], 1), short_tokens)
    both = stock(torch.cat([position_ids, boundary], dim=-1), **more)
    long = [turned[..., :-1, :] for turned in both]
    if all(is_long):
        return tuple(long)
    chosen = torch.tensor(is_long, device=position_ids.device)
    short = stock(position_ids.masked_fill(chosen, 0), **more)
    return tuple(torch.where(chosen[:, None], one, other) for one, other in zip(long, short, strict=True))
