"""Matrices of bytes as codes and scales: FP8 (E4M3) with scales for blocks, rows or everything, and whole numbers.

Sources: transformers' `integrations/finegrained_fp8.py` (`Fp8Dequantize`), compressed-tensors'
`quantization/lifecycle/forward.py` (`dequantize`), bitsandbytes' `int8_vectorwise_dequant`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from model_runtime.weights.coded.coded_rows import CodedRows, Grid, Kind, Scales, fitted_run
from model_runtime.weights.coded.integers import spread

_SCALES = {torch.float16: Scales.HALVES, torch.bfloat16: Scales.BRAINS, torch.float32: Scales.FLOATS}
_NOT_A_NUMBER = 0x7F  # of E4M3, without its sign
Block = tuple[int, int]


@dataclass(frozen=True, slots=True)
class CodedEights:
    """`codes` uint8 or int8 `[N, K]`; `scale` `[blocks, runs]`, a row of it for `high` rows; `zero` likewise, int8."""

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None
    high: int
    grid: Grid

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    def rows(self, start: int, end: int) -> CodedRows:
        """See `Coded`."""
        block = torch.arange(start, end) // self.high
        zero = None if self.zero is None else self.zero.index_select(0, block)
        return CodedRows(self.codes[start:end], self.scale.index_select(0, block), zero=zero)


def coded_fp8(weight: torch.Tensor, scale: torch.Tensor, block: Block | None) -> CodedEights:
    """E4M3 `weight` `[N, K]`; `scale` is one number, `[N]` or `[N, 1]`, or one a block of `block` rows and columns, the
    last ones of which may be cut off. Scales of one byte are exponents, 2^(byte - 127). Raises `ValueError` for scales
    that do not fit, and for weights that are no numbers."""
    if weight.dtype != torch.float8_e4m3fn:
        raise ValueError(f"numbers of {weight.dtype}; only FP8 in E4M3 can be read")
    codes = weight.view(torch.uint8)
    if any(bool(((part & 0x7F) == _NOT_A_NUMBER).any()) for part in torch.split(codes, 4096)):
        raise ValueError("weights that are not numbers")
    if scale.dtype in (torch.uint8, torch.float8_e8m0fnu):
        exponents = scale.view(torch.uint8)
        if int(exponents.max()) > 254:
            raise ValueError("one of its blocks has a scale that is not a finite number")
        return _coded(codes, exponents + 1, block, Kind.FP8, Scales.POWERS)  # the kernels' powers are one less
    return _coded(codes, scale, block, Kind.FP8, _kind_of(scale))


def coded_int8(
    weight: torch.Tensor, scale: torch.Tensor, block: Block | None = None, zero: torch.Tensor | None = None
) -> CodedEights:
    """`w = scale * (weight - zero)`, `weight` int8 `[N, K]`, `zero` whole numbers from -128 to 127; `scale` as in
    `coded_fp8`. Raises `ValueError` for other zeros, and scales that do not fit."""
    zero = None if zero is None else whole_numbers(zero, -128, 127).to(torch.int8)
    return _coded(weight, scale, block, Kind.Q8, _kind_of(scale), zero)


def whole_numbers(zero: torch.Tensor, least: int, most: int) -> torch.Tensor:
    """The zeros as int32. Raises `ValueError` unless they are integers in this range."""
    if zero.dtype.is_floating_point or zero.dtype == torch.bool:
        raise ValueError(f"zeros of {zero.dtype}")
    if zero.numel() and not least <= int(zero.min()) <= int(zero.max()) <= most:
        raise ValueError(f"zeros that are not in the range from {least} to {most}")
    return zero.to(torch.int32)


def coded_llm_int8(weight: torch.Tensor, largest: torch.Tensor) -> CodedEights:
    """bitsandbytes: `weight` int8 `[N, K]`, `largest` float32 `[N]`: a row's largest magnitude (SCB)."""
    return _coded(weight, largest.float(), None, Kind.INT8, Scales.FLOATS)


def _kind_of(scale: torch.Tensor) -> Scales:
    if scale.dtype not in _SCALES:
        raise ValueError(f"scales of {scale.dtype}")
    return _SCALES[scale.dtype]


def _coded(
    codes: torch.Tensor,
    scale: torch.Tensor,
    block: Block | None,
    kind: Kind,
    scales: Scales,
    zero: torch.Tensor | None = None,
) -> CodedEights:
    rows, columns = codes.shape
    if scale.numel() == 1:
        high, wide = rows, columns
    elif scale.shape in ((rows,), (rows, 1)):
        high, wide = 1, columns
    elif block is not None:
        high, wide = block
    else:
        high, wide = 1, columns // max(1, scale.shape[-1])
    grid_of = (-(-rows // high), -(-columns // wide)) if high > 0 and wide > 0 else (0, 0)
    if scale.numel() != grid_of[0] * grid_of[1] or (zero is not None and zero.numel() != scale.numel()):
        raise ValueError(f"a matrix of {rows} x {columns} has other scales than its blocks need")
    run, repeats = fitted_run(wide, columns)
    grid = Grid(kind, scales, run)
    runs = grid.runs(columns)
    if zero is not None:
        is_plain = not bool(zero.any())
        zero = None if is_plain else spread(zero.reshape(grid_of), repeats, runs)
    return CodedEights(codes, spread(scale.reshape(grid_of), repeats, runs), zero, high, grid)
