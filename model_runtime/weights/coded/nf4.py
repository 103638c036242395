"""Quantises numbers to NF4 with double quantization: bitsandbytes' own codes and scales, made some rows at a time.

Source: bitsandbytes' `backends/default/ops.py` (`quantize_4bit`) and `functional.py`. A code is the number of midpoints
between levels that lie below a number. bitsandbytes searches for it (`torch.bucketize`); fifteen comparisons of whole
vectors take half the time, and a float32 copy of the whole matrix is never made.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from model_runtime.weights.coded.coded_rows import Grid, Kind, Scales
from model_runtime.weights.coded.four_bits import CodedFourBits
from model_runtime.weights.coded.tiles import in_slices

RUN = 64  # columns that share a scale
SCALES_OF_A_FACTOR = 256  # of double quantization
_SLICE_WEIGHTS = 1 << 18  # as float32 at a time
_LEAST = 1e-38  # bitsandbytes' scale of a run of zeros


def nf4_levels() -> torch.Tensor:
    """float32 `[16]`, ascending."""
    from bitsandbytes import functional

    levels: torch.Tensor = functional.get_4bit_type("nf4", device="cpu").float().contiguous()
    return levels


def quantise_nf4(numbers: torch.Tensor, after_slice: Callable[[], None] = lambda: None) -> CodedFourBits:
    """`numbers` `[N, K]` of 16 or 32 bits, K a multiple of 64. `after_slice` is called whenever some rows are done."""
    from bitsandbytes import functional  # only here: importing it costs a second

    rows, columns = numbers.shape
    levels = nf4_levels()
    midpoints: list[float] = ((levels[:-1] + levels[1:]) / 2).tolist()
    packed = torch.empty(rows, columns // 2, dtype=torch.uint8)
    largest = torch.empty(rows, columns // RUN)

    def quantise(start: int, end: int) -> None:
        runs = numbers[start:end].float().view(end - start, -1, RUN)
        scales = runs.abs().amax(-1)
        scaled = (runs * (1.0 / scales.clamp(min=_LEAST)).unsqueeze(-1)).clamp_(-1, 1)
        codes = torch.zeros(scaled.shape, dtype=torch.uint8)
        for midpoint in midpoints:
            codes += scaled > midpoint
        codes = codes.view(end - start, columns)
        packed[start:end] = codes[:, ::2] << 4 | codes[:, 1::2]
        largest[start:end] = scales
        after_slice()

    in_slices(quantise, rows, columns, 1, _SLICE_WEIGHTS)
    flat = largest.flatten()
    offset = flat.mean()
    scale, outer = functional.quantize_blockwise(flat - offset, blocksize=SCALES_OF_A_FACTOR)
    nested = torch.cat([outer.code.float(), offset.reshape(1), outer.absmax.float()])
    grid = Grid(Kind.LEVELS, Scales.NESTED, RUN, 0, levels, nested)
    return CodedFourBits(packed.flatten(), scale.flatten(), grid, (rows, columns))
