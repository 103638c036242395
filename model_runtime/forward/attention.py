"""The attention of a packed forward: many conversations in one `[1, T]` row, each against its own KV slab.

Registered with transformers' `AttentionInterface` under `ATTENTION_NAME`. No mask function of that name exists, so
transformers builds no mask; masking happens here. The batch reaches this function through a context variable, because
some models' layers drop keyword arguments that they do not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from model_runtime.forward.attention_options import AttentionOptions, HiddenKeys
from model_runtime.forward.dense_attention import causal_mask, dense_attention
from model_runtime.kv.slab import KVSlab

ATTENTION_NAME = "keepwarm_packed"
HIDDEN_KEYS = "keepwarm_hidden_keys"  # the attribute of a layer's attention that says what its masks hide


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

    @property
    def abort_if(self) -> Callable[[], bool]: ...
    @property
    def layers_seen(self) -> list[int]: ...

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: AttentionOptions,
    ) -> torch.Tensor:
        """Stores the new keys and values `(1, kv_heads, T, dim)` and attends `query (1, heads, T, dim)` to those of its
        own conversation: `(1, T, heads, value_dim)`. Raises `ValueError` for an option that it does not compute."""


@dataclass(slots=True)
class PackedBatch:
    """An `AttentionBatch` over slabs: SDPA for each span, or `dense_attention` for what SDPA does not compute."""

    spans: Sequence[Span]
    abort_if: Callable[[], bool] = lambda: False
    layers_seen: list[int] = field(default_factory=list)
    _masks: dict[tuple[int, int, int | None, int | None], torch.Tensor] = field(default_factory=dict)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: AttentionOptions,
    ) -> torch.Tensor:
        """See `AttentionBatch`. The caller advances each slab's length after the last layer."""
        output = query.new_empty((1, query.shape[2], query.shape[1], value.shape[3]))
        for span in self.spans:
            rows = slice(span.start, span.start + span.tokens)
            end = span.past_tokens + span.tokens
            slab_keys, slab_values = span.slab.keys[layer], span.slab.values[layer]
            slab_keys[:, span.past_tokens : end] = key[0, :, rows]
            slab_values[:, span.past_tokens : end] = value[0, :, rows]
            attended = _attend(query[0, :, rows], slab_keys[:, :end], slab_values[:, :end], span, self, options)
            output[0, rows] = attended.transpose(0, 1)
        return output

    def mask(self, span: Span, options: AttentionOptions, like: torch.Tensor) -> torch.Tensor:
        """Additive bottom-right causal mask `(tokens, past + tokens)` in `like`'s dtype, shared by all layers."""
        key = (span.tokens, span.past_tokens, options.window, options.chunk)
        mask = self._masks.get(key)
        if mask is None:
            mask = self._masks[key] = causal_mask(span.tokens, span.past_tokens, options, like)
        return mask


_BATCH: ContextVar[AttentionBatch | None] = ContextVar("keepwarm_batch", default=None)


@contextmanager
def carrying(batch: AttentionBatch) -> Iterator[None]:
    """A context in which this thread's forwards attend through `batch`."""
    token = _BATCH.set(batch)
    try:
        yield
    finally:
        _BATCH.reset(token)


# What models pass along that changes nothing in a packed forward: positions are in the keys already, and the rest
# concerns training, caches that are not used here, and which outputs are returned.
_IRRELEVANT = frozenset(
    {
        *(
            "position_ids",
            "cache_position",
            "past_key_values",
            "use_cache",
            "output_attentions",
            "output_hidden_states",
        ),
        *("output_router_logits", "return_dict", "num_items_in_batch", "head_mask", "layer_idx", "position_embeddings"),
        *("inputs_embeds", "logits_to_keep", "deterministic"),
    }
)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    alibi_slopes: torch.Tensor | None = None,
    key_biases: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **more: object,
) -> tuple[torch.Tensor, None]:
    """`query (1, heads, T, key_dim)`, `key` and `value` `(1, kv_heads, T, dim)` -> `(1, T, heads, value_dim)`.

    Appends the keys and values of every conversation to its own rows, then attends. `s_aux` is transformers' name for
    sinks. `alibi_slopes (heads,)` and `key_biases` as in `AttentionOptions`. Raises `StepAborted`, or `ValueError` for
    attention that it cannot compute: also for any argument that it does not know.
    """
    packed = _BATCH.get()
    if packed is None:
        raise ValueError("packed attention was called without a batch")
    for name, given in more.items():
        if given is not None and given is not False and name not in _IRRELEVANT:
            raise ValueError(f"its attention uses {name}, which the packed kernel does not compute")
    if is_causal is False:
        raise ValueError("its attention looks ahead, which the packed kernel does not compute")
    if packed.abort_if():
        raise StepAborted
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    packed.layers_seen.append(layer)
    # The mask decides, as in transformers' own attention; a layer without one may state its window.
    hidden: HiddenKeys | None = getattr(module, HIDDEN_KEYS, None)
    window, chunk = (sliding_window, None) if hidden is None else (hidden.window, hidden.chunk)
    options = AttentionOptions(scaling, window, chunk, softcap, s_aux, alibi_slopes, key_biases)
    return packed.attend(layer, query, key, value, options), None


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    span: Span,
    packed: PackedBatch,
    options: AttentionOptions,
) -> torch.Tensor:
    """`query (heads, t, dim)` against `keys`/`values` `(kv_heads, n, dim)` -> `(heads, t, value_dim)`.

    KV heads become the batch and the query heads of a group its heads, over a stride-0 view of the keys: grouped-query
    attention without repeating K and V, with one parallel task per query head.
    """
    if options.changes_scores:
        return dense_attention(query, keys, values, options)
    heads, tokens, dim = query.shape
    kv_heads = keys.shape[0]
    mask = None
    if tokens > 1:
        mask = packed.mask(span, options, query)
    elif (first := options.first_key(span.past_tokens)) > 0:
        keys, values = keys[:, first:], values[:, first:]
    groups = heads // kv_heads
    attended = F.scaled_dot_product_attention(
        query.view(kv_heads, groups, tokens, dim),
        keys[:, None].expand(-1, groups, -1, -1),
        values[:, None].expand(-1, groups, -1, -1),
        attn_mask=mask,
        scale=options.scale,
    )
    return attended.reshape(heads, tokens, values.shape[2])


AttentionInterface.register(ATTENTION_NAME, packed_attention)
