"""Variable-length attention over spans anywhere in one key tensor: what a kernel gets, and which options it computes.

All implementations have the signature of torch's `varlen_attn`. Sequence i has `seqused_k[i]` keys from row
`cu_seq_k[i]` on: the CUDA kernel reads the begin from one and the length from the other (BlockInfo of its
block_info.h), so spans need not be adjacent or in order. The causal mask is bottom-right: the last query row sees every
key. Query heads share key heads without repeating them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from model_runtime.forward.arena.pieces import PieceTable
from model_runtime.forward.attention_options import AttentionOptions


@dataclass(slots=True)
class SpanTable:
    """Where the queries and keys of a step's `n` sequences are, on the device: int32 `cu_seq_q (n + 1)`, `cu_seq_k
    (n + 1)`, `seqused_k (n)`. `max_q` and `max_k` bound the lengths; a loose bound costs time but stays correct.
    `pieces` are the same sequences cut into pieces, if that is faster."""

    cu_seq_q: torch.Tensor
    cu_seq_k: torch.Tensor
    seqused_k: torch.Tensor
    max_q: int
    max_k: int
    pieces: PieceTable | None = None
    _windowed: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    _chunked: dict[int, SpanTable] = field(default_factory=dict)

    def last_keys(self, window: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`cu_seq_k` and `seqused_k` of each sequence's last `window` keys, computed once per step."""
        if window not in self._windowed:
            used = self.seqused_k.clamp(max=window)
            begins = self.cu_seq_k.clone()
            begins[:-1] += self.seqused_k - used
            self._windowed[window] = (begins, used)
        return self._windowed[window]

    def in_chunks(self, chunk: int) -> SpanTable:
        """The sequences cut where their positions pass multiples of `chunk`, so that each part sees the keys of its own
        chunk only; computed once per step. How many parts there are depends on `max_q` alone, so that the sizes are
        those of a recorded step: unneeded parts have no query rows and one key."""
        if self.max_k <= chunk:
            return self
        if chunk not in self._chunked:
            self._chunked[chunk] = self._cut_at(chunk)
        return self._chunked[chunk]

    def _cut_at(self, chunk: int) -> SpanTable:
        most = 1 if self.max_q == 1 else (self.max_q + chunk - 2) // chunk + 1
        begins_q = self.cu_seq_q[:-1, None]
        begins_k, used = self.cu_seq_k[:-1, None], self.seqused_k[:, None]
        first = used - (self.cu_seq_q[1:, None] - begins_q)  # the position of a sequence's first query row
        starts = (first // chunk + torch.arange(most, dtype=torch.int32, device=used.device)) * chunk
        ends = torch.minimum(starts + chunk, used)
        rows_q = begins_q + (torch.minimum(torch.maximum(starts, first), used) - first)
        keys = torch.minimum(begins_k + starts, begins_k + used - 1)
        return SpanTable(
            torch.cat([rows_q.flatten(), self.cu_seq_q[-1:]]).int(),
            torch.cat([keys.flatten(), self.cu_seq_k[-1:]]).int(),
            (ends - starts).clamp(min=1).flatten().int(),
            self.max_q,
            min(self.max_k, chunk),
        )


@dataclass(frozen=True, slots=True)
class VarlenKernel:
    """`call(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, seqused_k)`. `call_with_lse`
    also returns the logarithms of the softmax's sums `(heads, T)`; None if there is no such function. `waits`: it reads
    lengths on the host. `named`: which options the function takes by name (`alibi_slopes`, `key_biases`, `softcap`)."""

    name: str
    call: Callable[..., torch.Tensor]
    call_with_lse: Callable[..., tuple[torch.Tensor, torch.Tensor]] | None = None
    waits: bool = False
    named: frozenset[str] = frozenset()

    def attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        table: SpanTable,
        options: AttentionOptions,
    ) -> torch.Tensor:
        """`query (T, heads, dim)` against a layer's arena `(rows, kv_heads, dim)` -> `(T, heads, value_dim)`. Raises
        `ValueError` for an option that this kernel does not compute."""
        if refused := self.refused(options):
            raise ValueError(f"its attention uses {refused}, which {self.name} does not compute")
        by_position = {"window", "chunk", "slopes", "key_biases"}  # a piece does not know where its keys are
        if table.pieces is not None and self.call_with_lse is not None and by_position.isdisjoint(options.used):
            return self._attend_in_pieces(query, keys, values, table.pieces, options)
        if options.chunk is not None:
            table = table.in_chunks(options.chunk)
        arguments, named = self._arguments(query, keys, values, table, options)
        if options.sinks is None:
            return self.call(*arguments, **named)
        assert self.call_with_lse is not None
        return _with_sinks(*self.call_with_lse(*arguments, **named), options.sinks)

    def refused(self, options: AttentionOptions) -> str | None:
        """The first option in use that this kernel does not compute."""
        if options.softcap is not None and "softcap" not in self.named:
            return "softcap"
        if options.slopes is not None and "alibi_slopes" not in self.named:
            return "slopes (ALiBi)"
        is_cut = options.window is not None or options.chunk is not None
        if options.key_biases is not None and ("key_biases" not in self.named or is_cut):
            return "biases by the key's position"
        return "sinks" if options.sinks is not None and self.call_with_lse is None else None

    def _arguments(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        table: SpanTable,
        options: AttentionOptions,
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        """`window` counts the token itself, as transformers' `sliding_window` does; the kernel's left side does not. A
        single query row per sequence sees all its keys, so no mask is passed: only without a mask does the CUDA kernel
        split long keys among its blocks (`seqlenq_ngroups_swapped` in its flash_api.cpp). With slopes the mask stays:
        the kernel then adds `slope * k`, which differs from `slope * (k - p)` by a constant per row, and otherwise
        `-slope * abs(k - p)`, whose sign holds for keys before the query only (`Alibi` in its alibi.h).
        """
        begins, used, sides = table.cu_seq_k, table.seqused_k, (-1, 0)
        max_k, window = table.max_k, options.window
        if window is not None and window >= max_k:
            window = None
        if table.max_q == 1 and options.slopes is None:
            sides = (-1, -1)
            if window is not None:
                (begins, used), max_k = table.last_keys(window), window
        elif window is not None:
            sides = (window - 1, 0)
        named: dict[str, object] = {"scale": options.scale, "window_size": sides, "seqused_k": used}
        if options.slopes is not None:
            named["alibi_slopes"] = options.slopes.float()
        if options.key_biases is not None:
            named["key_biases"] = options.key_biases
        if options.softcap is not None:
            named["softcap"] = options.softcap
        return (query, keys, values, table.cu_seq_q, begins, table.max_q, max_k), named

    def _attend_in_pieces(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        pieces: PieceTable,
        options: AttentionOptions,
    ) -> torch.Tensor:
        assert self.call_with_lse is not None
        softcap = {} if options.softcap is None else {"softcap": options.softcap}
        outputs, lse = self.call_with_lse(
            query[pieces.rows],
            keys,
            values,
            pieces.cu_seq_q,
            pieces.cu_seq_k,
            pieces.max_q,
            pieces.max_k,
            scale=options.scale,
            window_size=(pieces.window - 1, 0),
            seqused_k=pieces.seqused_k,
            **softcap,
        )
        merged = pieces.merged(outputs, lse)
        return merged if options.sinks is None else _with_sinks(merged, pieces.merged_lse(lse), options.sinks)


def _with_sinks(output: torch.Tensor, lse: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
    """`output (T, heads, dim)` of a softmax with the sums `exp(lse (heads, T))`, with a further score `sinks (heads,)`
    in each sum: `exp(lse) / (exp(lse) + exp(sink))` is a sigmoid. A row that sees no key has an lse of infinity and
    zeros, and keeps them."""
    shares = torch.sigmoid(lse.float() - sinks.float()[:, None])
    return (output * shares.transpose(0, 1)[:, :, None]).to(output.dtype)
