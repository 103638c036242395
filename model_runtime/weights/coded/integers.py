"""Matrices of whole numbers of 4 or 8 bits as codes, scales and zeros: GPTQ, AWQ, compressed-tensors, int8."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from model_runtime.weights.coded.coded_rows import CodedRows, Grid, Kind, Scales, fitted_run

_SCALES = {torch.float16: Scales.HALVES, torch.bfloat16: Scales.BRAINS, torch.float32: Scales.FLOATS}
_HALF_RANGE = {4: 8, 8: 128}
Read = Callable[[int, int], torch.Tensor]


@dataclass(frozen=True, slots=True)
class CodedIntegers:
    """`read(start, end)` gives the codes of these rows as the file has them, uint8 `[n, K]`; `scale` `[N, runs]` in the
    dtype of the grid's scales; `zero` int8 `[N, runs]`, or None where the grid's offset says it for all."""

    read: Read
    scale: torch.Tensor
    zero: torch.Tensor | None
    grid: Grid
    shape: tuple[int, int]

    def rows(self, start: int, end: int) -> CodedRows:
        """See `Coded`."""
        codes = self.read(start, end)
        if self.grid.order is not None:
            codes = codes.index_select(1, self.grid.order)
        if self.grid.kind is Kind.Q8:
            codes = signed(codes)
        zero = None if self.zero is None else self.zero[start:end]
        return CodedRows(codes, self.scale[start:end], zero=zero)


def coded_integers(
    read: Read,
    bits: int,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    group: int,
    shape: tuple[int, int],
    order: torch.Tensor | None = None,
) -> CodedIntegers:
    """`w = scale * (code - zero)`. `read` gives codes from 0 to 2^bits - 1; `scale` `[N, groups]` in float16, bfloat16
    or float32; `zero` uint8 `[N, groups]`, None for half the range; `group` columns share both. Raises `ValueError` for
    groups and scales that the kernels cannot read."""
    if bits not in _HALF_RANGE:
        raise ValueError(f"{bits} bits")
    if scale.dtype not in _SCALES:
        raise ValueError(f"scales of {scale.dtype}")
    rows, columns = shape
    groups = -(-columns // group)
    if tuple(scale.shape) != (rows, groups) or (zero is not None and zero.shape != scale.shape):
        raise ValueError(f"a matrix of {rows} x {columns} has other scales than its groups of {group} need")
    run, repeats = fitted_run(group, columns)
    half = _HALF_RANGE[bits]
    kind, offset = (Kind.Q4, half) if bits == 4 else (Kind.Q8, 0)  # codes of 8 bits are made signed
    grid = Grid(kind, _SCALES[scale.dtype], run, offset, order=order)
    if zero is not None and bool((zero == half).all()):
        zero = None
    if zero is not None:
        grid = replace(grid, offset=0)
        zero = spread(zero.view(torch.int8) if bits == 4 else signed(zero), repeats, grid.runs(columns))
    return CodedIntegers(read, spread(scale, repeats, grid.runs(columns)), zero, grid, shape)


def spread(scale: torch.Tensor, repeats: int, runs: int) -> torch.Tensor:
    """Scales of groups as those of runs, `repeats` of which make a group: `[N, groups]` to `[N, runs]`."""
    return scale.repeat_interleave(repeats, 1)[:, :runs].contiguous()


def signed(codes: torch.Tensor) -> torch.Tensor:
    """uint8 0 to 255 as int8 -128 to 127."""
    return (codes ^ 128).view(torch.int8)


def check_words(*packed: torch.Tensor) -> None:
    """Raises `ValueError` for tensors whose fields are not packed into int32."""
    for words in packed:
        if words.dtype != torch.int32:
            raise ValueError(f"packed numbers in words of {words.dtype}")


def fields(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The fields of int32 words, the lowest first: `[n, w]` to uint8 `[n, w * 32 / bits]`."""
    octets = words.contiguous().view(torch.uint8)
    return octets if bits == 8 else torch.stack([octets & 15, octets >> 4], -1).flatten(1)
