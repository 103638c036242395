"""A coded matrix as plain numbers, in torch: for devices and processors on which our own kernels do not run."""

from __future__ import annotations

import torch

from model_runtime.weights.coded.coded_rows import Coded, CodedRows, Grid, Kind, Scales

_SLICE_WEIGHTS = 1 << 22
_INT8_FACTOR = 7.874015718698502e-3  # bitsandbytes' 1/127 in float32
_POWER_BIAS = 128


def dequantised_rows(matrix: Coded, dtype: torch.dtype) -> torch.Tensor:
    """All its weights `[N, K]`: the float32 that the kernels see, rounded once to `dtype`. For what `integers`,
    `eights` and `levels` hold."""
    rows, columns = matrix.shape
    numbers = torch.empty(rows, columns, dtype=dtype)
    step = max(1, _SLICE_WEIGHTS // columns)
    for start in range(0, rows, step):
        end = min(start + step, rows)
        numbers[start:end] = rows_as_numbers(matrix, start, end)
    return numbers


def rows_as_numbers(matrix: Coded, start: int, end: int) -> torch.Tensor:
    """Rows `start..end` in float32 `[n, K]`, in the order of the inputs."""
    numbers = _numbers(matrix.rows(start, end), matrix.grid)
    order = matrix.grid.order
    return numbers if order is None else torch.empty_like(numbers).index_copy_(1, order.long(), numbers)


def _numbers(part: CodedRows, grid: Grid) -> torch.Tensor:
    columns = part.codes.shape[1]

    def of_columns(entries: torch.Tensor) -> torch.Tensor:
        return entries.repeat_interleave(grid.run, 1)[:, :columns]

    codes = _codes(part.codes, grid)
    codes -= grid.offset if part.zero is None else of_columns(part.zero.float())
    numbers = codes.mul_(of_columns(_scale(part.scale, grid)))
    return numbers.mul_(_INT8_FACTOR) if grid.kind is Kind.INT8 else numbers


def _codes(codes: torch.Tensor, grid: Grid) -> torch.Tensor:
    if grid.kind is Kind.FP8:
        return codes.view(torch.float8_e4m3fn).float()
    if grid.kind in (Kind.LEVELS, Kind.LEVELS16):
        assert grid.levels is not None
        return grid.levels[codes.int()]
    return codes.float()


def _scale(scale: torch.Tensor, grid: Grid) -> torch.Tensor:
    """POWERS are 2^(byte - 128), also where that is a subnormal number."""
    if grid.scales is not Scales.POWERS:
        return scale.float()
    return torch.ldexp(torch.ones(scale.shape), scale.int() - _POWER_BIAS)
