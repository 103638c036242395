"""Which kernel computes attention of variable lengths: the first flash kernel that agrees with the reference.

torch 2.11's public `varlen_attn` has no `seqused_k`, 2.12's and 2.13's have it; some builds have `enable_gqa` and
refuse grouped heads without it. So signatures are inspected, not versions, and the underlying aten operator is the
fallback.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from model_runtime.forward.arena.pieces import PieceTable, cut
from model_runtime.forward.arena.varlen import SpanTable, VarlenKernel
from model_runtime.forward.arena.varlen_reference import REFERENCE
from model_runtime.forward.attention_options import PLAIN, AttentionOptions


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
