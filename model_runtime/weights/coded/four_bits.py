"""bitsandbytes' 4-bit matrices (NF4, FP4) as codes and scales.

Source: bitsandbytes' `functional.py` (`dequantize_4bit`): the first of two codes is in a byte's high bits; a code is a
place in a table of sixteen numbers; blocks run along the rows and share an absolute maximum, which with double
quantization is a place in a table of 256 numbers, times a factor of 256 blocks, plus an offset.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from model_runtime.weights.coded.coded_rows import CodedRows, Grid, Kind, Scales

_FACTOR_RUNS = 256  # scales that share a factor in the kernels, and in everything that bitsandbytes writes


@dataclass(frozen=True, slots=True)
class CodedFourBits:
    """`packed` uint8 `[N*K/2]`, `scale` `[N*K/run]` in the dtype of the grid's scales."""

    packed: torch.Tensor
    scale: torch.Tensor
    grid: Grid
    shape: tuple[int, int]

    def rows(self, start: int, end: int) -> CodedRows:
        """See `Coded`."""
        columns = self.shape[1]
        packed = self.packed[start * columns // 2 : end * columns // 2]
        codes = torch.stack([packed >> 4, packed & 15], -1).view(end - start, columns)
        runs = columns // self.grid.run
        return CodedRows(codes, self.scale[start * runs : end * runs].view(end - start, runs))


def coded_four_bits(layer: Any) -> CodedFourBits | None:
    """The matrix of a quantised `Linear4bit`, whose sizes were checked (`check_bitsandbytes`). None if it is not
    quantised yet, and where blocks cross the ends of rows."""
    state = getattr(layer.weight, "quant_state", None)
    rows, columns, run = int(layer.out_features), int(layer.in_features), int(getattr(state, "blocksize", 0) or 0)
    if state is None or run < 32 or run & (run - 1) or columns % run:
        return None
    scales = rows * columns // run
    levels, scale, nested = state.code.float().contiguous(), state.absmax.flatten()[:scales], None
    if state.nested:
        outer = state.state2
        offset = state.offset.float().reshape(1)
        if int(outer.blocksize) == _FACTOR_RUNS:
            nested = torch.cat([outer.code.float(), offset, outer.absmax.float()])
        else:
            factors = outer.absmax.float().repeat_interleave(int(outer.blocksize))[:scales]
            scale = outer.code.float()[scale.int()] * factors + offset
    kind = Scales.FLOATS if nested is None else Scales.NESTED
    packed = layer.weight.data.flatten().view(torch.uint8)[: rows * columns // 2]
    return CodedFourBits(packed, scale, Grid(Kind.LEVELS, kind, run, 0, levels, nested), (rows, columns))
