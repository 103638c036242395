"""The KV arena: one token-major buffer per layer, in which every conversation has one span of rows.

The variable-length kernel takes one key tensor for all conversations, so their rows must be in one tensor. A span is
reserved for the length that its answer may reach, so that nothing moves while tokens stream. If enough rows are free
but no hole is long enough, the arena is compacted layer by layer, through a reserve that holds one layer's keys of the
longest span: the only extra memory that a move needs, allocated with the arena.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from model_runtime.forward.arena.spans import SpanAllocator
from model_runtime.kv.geometry import KVGeometry
from model_runtime.kv.slab import KVSlab

STEP_TOKENS = 64  # spans are multiples of it


class Arena:
    """`keys[layer]` is `(capacity_tokens + 1, kv_heads, key_dim)`, `values[layer]` likewise. Padded steps write to the
    last row, the padding row. Engine thread only."""

    def __init__(self, geometry: KVGeometry, capacity_tokens: int, longest_span_tokens: int) -> None:
        self.geometry = geometry
        self.capacity_tokens = capacity_tokens // STEP_TOKENS * STEP_TOKENS
        if self.capacity_tokens <= 0:
            raise ValueError(f"A KV arena needs room for {STEP_TOKENS} tokens at least.")
        rows = self.capacity_tokens + 1
        self.keys = [self._empty(rows, s.kv_heads, s.key_dim) for s in geometry.layers]
        self.values = [self._empty(rows, s.kv_heads, s.value_dim) for s in geometry.layers]
        self.before_rows_change: Callable[[], None] = lambda: None  # set to wait for copies that still run
        self.is_closed = False
        self._spans = SpanAllocator(self.capacity_tokens)
        self._kvs: list[ArenaKV] = []
        widest = max(s.kv_heads * max(s.key_dim, s.value_dim) for s in geometry.layers)
        self._reserve = self._empty(min(_stepped(longest_span_tokens), self.capacity_tokens), widest)

    @property
    def padding_row(self) -> int:
        return self.capacity_tokens

    @property
    def allocated_bytes(self) -> int:
        """The memory of the arena, the reserve included."""
        return sum(t.nbytes for t in (*self.keys, *self.values)) + self._reserve.nbytes

    @property
    def free_tokens(self) -> int:
        return self._spans.free_rows

    def bytes_for(self, tokens: int) -> int:
        """The size in bytes of a span for `tokens` tokens."""
        return _stepped(tokens) * self.geometry.bytes_per_token

    def new_kv(self) -> ArenaKV:
        """An empty KV without rows."""
        return ArenaKV(self)

    def grow(self, kv: ArenaKV, tokens: int) -> None:
        """Grows the span of `kv` to at least `tokens` rows. Rows keep their content; other spans may move. Raises
        `torch.OutOfMemoryError` when the arena is full; nothing has changed then."""
        wanted = _stepped(tokens)
        more = wanted - kv.span_tokens
        if more <= 0:
            return
        if kv.span_tokens and self._spans.extend(kv.span_start + kv.span_tokens, more):
            kv.place(kv.span_start, wanted)
            return
        if more > self._spans.free_rows:
            raise torch.OutOfMemoryError(
                f"out of memory: the KV arena has room for {self._spans.free_rows} more tokens, {more} are needed"
            )
        start = self._spans.take(wanted)
        if start is None or kv.length_tokens:
            self.before_rows_change()
        if start is None:
            self.compact(kv)
            start = kv.span_start
            assert self._spans.extend(start + kv.span_tokens, more)
        elif kv.span_tokens:
            for layer in (*self.keys, *self.values):
                layer[start : start + kv.length_tokens] = layer[kv.span_start : kv.span_start + kv.length_tokens]
            self._spans.give_back(kv.span_start, kv.span_tokens)
        if kv not in self._kvs:
            self._kvs.append(kv)
        kv.place(start, wanted)

    def shrink(self, kv: ArenaKV, tokens: int) -> None:
        """Frees the rows after the first `tokens` of the span; all of them for 0."""
        kept = _stepped(tokens)
        if kept < kv.span_tokens:
            self.before_rows_change()
            self._spans.give_back(kv.span_start + kept, kv.span_tokens - kept)
            kv.place(kv.span_start if kept else 0, kept)
        if not kv.span_tokens and kv in self._kvs:
            self._kvs.remove(kv)

    def close(self) -> None:
        """Frees the memory, also that of KVs which still have rows. A running forward stops at its next layer."""
        self.is_closed = True
        self.keys = [layer[:0].clone() for layer in self.keys]
        self.values = [layer[:0].clone() for layer in self.values]
        self._reserve = self._reserve[:0].clone()
        for kv in self._kvs:
            kv.place(0, 0)  # its views would keep the memory of every layer alive
        self._kvs.clear()

    def compact(self, last: ArenaKV) -> None:
        """Moves all spans to the front, `last` behind all others, so that the free rows form one hole at the end."""
        order = sorted((kv for kv in self._kvs if kv is not last), key=lambda kv: kv.span_start)
        starts, start = [], 0
        for kv in order:
            starts.append(start)
            start += kv.span_tokens
        for layer in (*self.keys, *self.values):
            lifted = self._lift(layer, last)
            for kv, target in zip(order, starts, strict=True):
                self._slide(layer, kv, target)
            layer[start : start + last.length_tokens] = lifted
        self._spans = SpanAllocator(self.capacity_tokens)
        for kv, target in zip(order, starts, strict=True):
            self._spans.extend(target, kv.span_tokens)
            kv.place(target, kv.span_tokens)
        self._spans.extend(start, last.span_tokens)
        last.place(start, last.span_tokens)

    def _lift(self, layer: torch.Tensor, kv: ArenaKV) -> torch.Tensor:
        """Copies the KV's rows of one layer into the reserve."""
        lifted = self._reserve_rows(layer, kv.length_tokens)
        lifted.copy_(layer[kv.span_start : kv.span_start + kv.length_tokens])
        return lifted

    def _slide(self, layer: torch.Tensor, kv: ArenaKV, target: int) -> None:
        """Moves rows towards the front, in pieces no longer than the distance, since source and target may overlap."""
        distance = kv.span_start - target
        if not distance:
            return
        for begin in range(0, kv.length_tokens, distance):
            rows = min(distance, kv.length_tokens - begin)
            layer[target + begin : target + begin + rows] = layer[kv.span_start + begin : kv.span_start + begin + rows]

    def _reserve_rows(self, layer: torch.Tensor, rows: int) -> torch.Tensor:
        return self._reserve[:rows, : layer.shape[1] * layer.shape[2]].view(rows, layer.shape[1], layer.shape[2])

    def _empty(self, *shape: int) -> torch.Tensor:
        # Zeros, because a kernel may read a whole tile beyond a span, and must not find NaN there.
        return torch.zeros(shape, dtype=self.geometry.dtype, device=self.geometry.device)


class ArenaKV(KVSlab):
    """A KV whose rows are a span of an arena. `keys[layer]` is a view `(kv_heads, span_tokens, key_dim)`, the layout of
    a slab, so that code that copies rows works on both."""

    __slots__ = ("_arena", "arriving", "losses", "span_start")

    def __init__(self, arena: Arena) -> None:
        super().__init__(arena.geometry)
        self._arena = arena
        self.span_start = 0
        self.arriving: list[Any] | None = None  # one event per layer, until a forward has waited for them
        self.losses = 0  # how often rows were dropped

    @property
    def span_tokens(self) -> int:
        """How many rows its span has."""
        return self._capacity_tokens

    def ensure_room(self, tokens: int) -> None:
        """Grows to hold `tokens` tokens. Raises `torch.OutOfMemoryError`; nothing has changed then."""
        if tokens > self._capacity_tokens:
            self._arena.grow(self, tokens)

    def reserve(self, tokens: int) -> None:
        """Reserves the whole span at once, so that it does not move while its answer streams."""
        self.ensure_room(tokens)

    def trim(self) -> None:
        """Frees the rows that a finished answer did not need."""
        self._arena.shrink(self, self.length_tokens)

    def crop(self, length_tokens: int) -> None:
        """Drops everything from position `length_tokens` on, after any copy of those rows that still runs."""
        if length_tokens < self.length_tokens:
            self.losses += 1
            self._arena.before_rows_change()
        super().crop(length_tokens)

    def free(self) -> None:
        """Frees all rows. The KV is then empty and can be used again."""
        self.token_ids.clear()
        self.losses += 1
        self.arriving = None
        self._arena.shrink(self, 0)

    def place(self, start: int, tokens: int) -> None:
        """Called by the arena to set the span's position and size."""
        self.span_start, self._capacity_tokens = start, tokens
        self.keys = [layer[start : start + tokens].transpose(0, 1) for layer in self._arena.keys]
        self.values = [layer[start : start + tokens].transpose(0, 1) for layer in self._arena.values]


def _stepped(tokens: int) -> int:
    return -(-tokens // STEP_TOKENS) * STEP_TOKENS
