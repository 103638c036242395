"""Variable-length attention over spans anywhere in one key tensor: the flash kernel, and a reference implementation.

All implementations have the signature of torch's `varlen_attn`. Sequence i has `seqused_k[i]` keys from row
`cu_seq_k[i]` on: the CUDA kernel reads the begin from one and the length from the other (BlockInfo of its
block_info.h), so spans need not be adjacent or in order. The causal mask is bottom-right: the last query row sees every
key. Query heads share key heads without repeating them.

torch 2.11's public `varlen_attn` has no `seqused_k`, 2.12's and 2.13's have it; some builds have `enable_gqa` and
refuse grouped heads without it. So signatures are inspected, not versions, and the underlying aten operator is the
fallback.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch

from model_runtime.forward.arena.pieces import PieceTable, cut
from model_runtime.forward.attention_options import PLAIN, AttentionOptions


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


def flash_kernels() -> Iterator[VarlenKernel]:
    """The flash kernels of this build of torch, the public one first."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        varlen_attn = None  # type: ignore[assignment]
    if varlen_attn is not None:
        known = set(inspect.signature(varlen_attn).parameters)
        if {"scale", "window_size", "seqused_k"} <= known:
            more = {"enable_gqa": True} if "enable_gqa" in known else {}
            yield VarlenKernel("flash varlen_attn", _with(varlen_attn, more), _public_with_lse(varlen_attn, more))
    operator = getattr(torch.ops.aten, "_flash_attention_forward", None)
    if operator is not None:
        known = {argument.name for argument in operator.default._schema.arguments}
        if {"cum_seq_q", "cum_seq_k", "window_size_left", "window_size_right", "seqused_k"} <= known:
            named = known & {"alibi_slopes"}
            yield VarlenKernel("flash aten varlen", _aten_varlen, _aten_with_lse, named=frozenset(named))


def choose_varlen(
    device: torch.device,
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    dim: int,
    options: Sequence[AttentionOptions] = (),
) -> VarlenKernel:
    """The first flash kernel that agrees with the reference on this device for these sizes and all `options` of the
    model's layers, else the reference."""
    if device.type == "cuda" and dtype in (torch.float16, torch.bfloat16):
        for kernel in flash_kernels():
            try:
                if agrees(kernel, device, dtype, heads, kv_heads, dim, options):
                    in_pieces = agrees_in_pieces(kernel, device, dtype, heads, kv_heads, dim)
                    needs_sums = any(used.sinks is not None for used in options)
                    return kernel if in_pieces or needs_sums else replace(kernel, call_with_lse=None)
            except (RuntimeError, TypeError, ValueError, NotImplementedError):
                continue
    return REFERENCE


@torch.inference_mode()
def agrees(
    kernel: VarlenKernel,
    device: torch.device,
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    dim: int,
    options: Sequence[AttentionOptions] = (),
) -> bool:
    """Whether it equals the reference to the dtype's precision: reads after histories, single rows, windows; spans that
    are out of order and have gaps between them; and each of `options`, with its window and chunk of 16 keys. Raises
    `ValueError` for an option that the kernel does not compute."""
    generator = torch.Generator(device).manual_seed(5)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    def numbers(*values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    short = [replace(o, window=o.window and 16, chunk=o.chunk and 16) for o in options if o.used - {"window"}]
    keys, values = random(700, kv_heads, dim), random(700, kv_heads, dim)
    for lengths_q in ((3, 1, 40), (1, 1, 1)):
        begins = numbers(0, lengths_q[0], sum(lengths_q[:2]), sum(lengths_q))
        table = SpanTable(begins, numbers(300, 10, 450, 700), numbers(131, 17, 200), max(lengths_q), 256)
        query = random(sum(lengths_q), heads, dim)
        for used in (PLAIN, AttentionOptions(window=16), *short):
            found = kernel.attend(query, keys, values, table, used).float()
            expected = REFERENCE.attend(query.float(), keys.float(), values.float(), table, used)
            if not float((found - expected).abs().max()) <= (1e-4 if dtype == torch.float32 else 0.04):
                return False
    return True


@torch.inference_mode()
def agrees_in_pieces(
    kernel: VarlenKernel, device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, dim: int
) -> bool:
    """Whether sequences cut into pieces get the results that the reference computes for whole ones."""
    if kernel.call_with_lse is None:
        return False
    generator = torch.Generator(device).manual_seed(5)
    query, keys, values = (
        torch.randn((rows, shared, dim), generator=generator, device=device).to(dtype)
        for rows, shared in ((42, heads), (1500, kv_heads), (1500, kv_heads))
    )
    begins_q, begins_k, used_k = (0, 33, 34, 42), (900, 10, 720, 1500), (577, 700, 12)
    pieces = cut(begins_q, begins_k, used_k, 128)
    numbers = torch.tensor(pieces.numbers, dtype=torch.int32, device=device)
    spans = [torch.tensor(n, dtype=torch.int32, device=device) for n in (begins_q, begins_k, used_k)]
    table = SpanTable(spans[0], spans[1], spans[2], 33, 700, PieceTable.of(pieces, 42, numbers))
    try:
        found = kernel.attend(query, keys, values, table, PLAIN).float()
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return False
    table.pieces = None
    expected = REFERENCE.attend(query.float(), keys.float(), values.float(), table, PLAIN)
    return float((found - expected).abs().max()) <= (1e-4 if dtype == torch.float32 else 0.04)


def _with(call: Callable[..., Any], more: dict[str, bool]) -> Callable[..., torch.Tensor]:
    def bound(*arguments: object, **named: object) -> torch.Tensor:
        return torch.as_tensor(call(*arguments, **named, **more))

    return bound


def _public_with_lse(
    call: Callable[..., Any], more: dict[str, bool]
) -> Callable[..., tuple[torch.Tensor, torch.Tensor]] | None:
    """`varlen_attn` that also returns the sums, if this build supports it (`return_aux`)."""
    if "return_aux" not in inspect.signature(call).parameters:
        return None
    from torch.nn.attention.varlen import AuxRequest

    def bound(*arguments: object, **named: object) -> tuple[torch.Tensor, torch.Tensor]:
        output, lse = call(*arguments, **named, **more, return_aux=AuxRequest(lse=True))
        return torch.as_tensor(output), torch.as_tensor(lse)

    return bound


def _aten_varlen(*arguments: Any, **named: Any) -> torch.Tensor:
    """`_aten_with_lse` without the sums."""
    return _aten_with_lse(*arguments, **named)[0]


def _aten_with_lse(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    seqused_k: torch.Tensor,
    alibi_slopes: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`aten::_flash_attention_forward` of native_functions.yaml, with no dropout and no debug mask."""
    output, lse, *_ = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        cu_seq_q,
        cu_seq_k,
        max_q,
        max_k,
        0.0,
        window_size == (-1, 0),
        False,
        scale=scale,
        window_size_left=window_size[0],
        window_size_right=window_size[1],
        seqused_k=seqused_k,
        **({} if alibi_slopes is None else {"alibi_slopes": alibi_slopes}),
    )
    return output, lse
