"""ggml's formats of 1 to 3 bits, whose columns are taken eight or four at a time from a codebook, as sixteen levels.

A codebook's numbers have three to eight sizes, so a column is one of at most sixteen levels, times a small odd number
that 32 columns share, times a half that 256 columns share. Codes of 4 bits say so exactly; a codebook would need
kernels of its own. IQ1_M, IQ2_XS and IQ2_S, where 16 columns share a number, are not read so.
Sources: ggml-common.h (`iq2xxs_grid` and so on) and gguf's `quants.py`, which unpacks the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from model_runtime.weights.coded.coded_rows import BLOCK, CodedRows, Grid, Kind, Scales

Blocks = torch.Tensor  # uint8 [n, blocks of a row, bytes of a block]
RUN = 32  # columns that share a small number


@dataclass(frozen=True, slots=True)
class Codebook:
    """A format. `scales` reads the small numbers of blocks `[.., bytes]`: `[.., 8]`. `sizes` are the magnitudes of the
    levels."""

    kind: str
    block_bytes: int
    sizes: Sequence[float]
    scales: Callable[[Blocks], torch.Tensor]

    @property
    def grid(self) -> Grid:
        return Grid(Kind.LEVELS, Scales.SUPER, RUN, 0, self._levels())

    def split(self, blocks: Blocks) -> CodedRows:
        """See `Format`."""
        from gguf import GGMLQuantizationType, dequantize  # only here: models without such blocks run without gguf

        rows = blocks.shape[0]
        scale = 2 * self.scales(blocks).to(torch.int8) + 1
        of_one = blocks.clone()
        of_one[..., :2] = torch.tensor([1.0], dtype=torch.float16).view(torch.uint8)
        numbers = torch.from_numpy(dequantize(of_one.reshape(rows, -1).numpy(), GGMLQuantizationType[self.kind]))
        # A product of the two, and so divided without a remainder.
        levels = numbers.view(rows, -1, RUN) / scale.view(rows, -1, 1)
        codes = torch.searchsorted(self._levels(), levels).to(torch.uint8)
        half = blocks[..., :2].contiguous().view(torch.float16).squeeze(-1)
        return CodedRows(codes.view(rows, -1), scale.view(rows, -1), super_scale=half)

    def _levels(self) -> torch.Tensor:
        """Ascending, the largest repeated until there are sixteen."""
        levels = sorted([-size for size in self.sizes] + list(self.sizes))
        return torch.tensor(levels + levels[-1:] * (16 - len(levels)), dtype=torch.float32)


def _nibbles(packed: Blocks) -> torch.Tensor:
    return torch.stack([packed & 15, packed >> 4], -1).flatten(-2)


def _upper_bits(packed: Blocks, dtype: torch.dtype, shift: int, mask: int) -> torch.Tensor:
    """A field of each word."""
    # A copy: a single block would be a view that begins in the middle of a word.
    return packed.clone(memory_format=torch.contiguous_format).view(dtype).int() >> shift & mask


CODEBOOKS = {
    book.kind: book
    for book in (
        # -1, 0 and 1, an eighth more or less.
        Codebook("IQ1_S", 50, (0.125, 0.875, 1.125), lambda blocks: _upper_bits(blocks[..., 34:], torch.int16, 12, 7)),
        # 8, 25 and 43, an eighth of each. Every second word ends with a number.
        Codebook(
            "IQ2_XXS",
            66,
            (1.0, 3.125, 5.375),
            lambda blocks: _upper_bits(blocks[..., 2:], torch.int32, 28, 15)[..., 1::2],
        ),
        Codebook(
            "IQ3_XXS",
            98,
            (1, 3, 5, 7, 9, 11, 13, 15.5),
            lambda blocks: _upper_bits(blocks[..., 66:], torch.int32, 28, 15),
        ),
        Codebook("IQ3_S", 110, (1, 3, 5, 7, 9, 11, 13, 15), lambda blocks: _nibbles(blocks[..., 106:])),
    )
}


def held_bytes(weights: int) -> int:
    """What so many weights take in memory: codes of 4 bits, and their scales."""
    return weights // 2 + weights // RUN + 2 * (weights // BLOCK)
