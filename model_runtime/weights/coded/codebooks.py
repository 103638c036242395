"""ggml's formats of 1 to 3 bits, whose columns are taken eight or four at a time from a codebook, as sixteen levels.

A codebook's numbers have three to eight sizes, so a column is one of at most sixteen levels, times a small odd number
that 16 or 32 columns share, times a half that 256 columns share. Codes of 4 bits say so exactly; a codebook would need
kernels of its own.
Sources: ggml-common.h (`iq2xxs_grid` and so on) and gguf's `quants.py`, which unpacks the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from model_runtime.weights.coded.coded_rows import BLOCK, CodedRows, Grid, Kind, Scales

Blocks = torch.Tensor  # uint8 [n, blocks of a row, bytes of a block]


@dataclass(frozen=True, slots=True)
class Codebook:
    """A format. `run` columns share a small number: `scales` reads those of blocks `[.., bytes]` as `[.., 256 / run]`.
    `sizes` are the magnitudes of the levels. `is_scattered`: the half is in the upper bits of the last four words, not
    in the first bytes."""

    kind: str
    block_bytes: int
    run: int
    sizes: Sequence[float]
    scales: Callable[[Blocks], torch.Tensor]
    is_scattered: bool = False

    @property
    def grid(self) -> Grid:
        kind = Kind.LEVELS if self.run == 32 else Kind.LEVELS16
        return Grid(kind, Scales.SUPER, self.run, 0, self._levels())

    def split(self, blocks: Blocks) -> CodedRows:
        """See `Format`."""
        from gguf import GGMLQuantizationType, dequantize  # only here: models without such blocks run without gguf

        rows = blocks.shape[0]
        scale = 2 * self.scales(blocks).to(torch.int8) + 1
        of_one = self._with_half_of_one(blocks)
        numbers = torch.from_numpy(dequantize(of_one.reshape(rows, -1).numpy(), GGMLQuantizationType[self.kind]))
        # A product of the two, and so divided without a remainder.
        levels = numbers.view(rows, -1, self.run) / scale.view(rows, -1, 1)
        codes = torch.searchsorted(self._levels(), levels).to(torch.uint8)
        return CodedRows(codes.view(rows, -1), scale.view(rows, -1), super_scale=self._half(blocks))

    def _half(self, blocks: Blocks) -> torch.Tensor:
        if not self.is_scattered:
            return blocks[..., :2].contiguous().view(torch.float16).squeeze(-1)
        first, second, third, fourth = (blocks[..., -7::2] >> 4).unbind(-1)
        return torch.stack([first | second << 4, third | fourth << 4], -1).view(torch.float16).squeeze(-1)

    def _with_half_of_one(self, blocks: Blocks) -> Blocks:
        """A copy whose halves are 1."""
        changed = blocks.clone()
        if not self.is_scattered:
            changed[..., :2] = torch.tensor([1.0], dtype=torch.float16).view(torch.uint8)
        else:
            changed[..., -7::2] = changed[..., -7::2] & 15 | torch.tensor([0x00, 0x00, 0xC0, 0x30], dtype=torch.uint8)
        return changed

    def _levels(self) -> torch.Tensor:
        """Ascending, the largest repeated until there are sixteen."""
        levels = sorted([-size for size in self.sizes] + list(self.sizes))
        return torch.tensor(levels + levels[-1:] * (16 - len(levels)), dtype=torch.float32)


def _nibbles(packed: Blocks) -> torch.Tensor:
    return torch.stack([packed & 15, packed >> 4], -1).flatten(-2)


def _threes(packed: Blocks) -> torch.Tensor:
    """Four fields of three bits in each word of 16."""
    words = packed.clone(memory_format=torch.contiguous_format).view(torch.int16).int().unsqueeze(-1)
    return (words >> torch.tensor([0, 3, 6, 9], dtype=torch.int32) & 7).flatten(-2)


def _upper_bits(packed: Blocks, dtype: torch.dtype, shift: int, mask: int) -> torch.Tensor:
    """A field of each word."""
    # A copy: a single block would be a view that begins in the middle of a word.
    return packed.clone(memory_format=torch.contiguous_format).view(dtype).int() >> shift & mask


_ONE_BIT = (0.125, 0.875, 1.125)  # of -1, 0 and 1, an eighth more or less
_TWO_BITS = (1.0, 3.125, 5.375)  # 8, 25 and 43, an eighth of each
CODEBOOKS = {
    book.kind: book
    for book in (
        Codebook("IQ1_S", 50, 32, _ONE_BIT, lambda blocks: _upper_bits(blocks[..., 34:], torch.int16, 12, 7)),
        Codebook("IQ1_M", 56, 16, _ONE_BIT, lambda blocks: _threes(blocks[..., 48:]), is_scattered=True),
        # Every second word ends with a number.
        Codebook(
            "IQ2_XXS", 66, 32, _TWO_BITS, lambda blocks: _upper_bits(blocks[..., 2:], torch.int32, 28, 15)[..., 1::2]
        ),
        Codebook("IQ2_XS", 74, 16, _TWO_BITS, lambda blocks: _nibbles(blocks[..., 66:])),
        Codebook("IQ2_S", 82, 16, _TWO_BITS, lambda blocks: _nibbles(blocks[..., 74:])),
        Codebook(
            "IQ3_XXS",
            98,
            32,
            (1, 3, 5, 7, 9, 11, 13, 15.5),
            lambda blocks: _upper_bits(blocks[..., 66:], torch.int32, 28, 15),
        ),
        Codebook("IQ3_S", 110, 32, (1, 3, 5, 7, 9, 11, 13, 15), lambda blocks: _nibbles(blocks[..., 106:])),
    )
}


def held_bytes(kind: str, weights: int) -> int:
    """What so many weights take in memory: codes of 4 bits, and their scales."""
    return weights // 2 + weights // CODEBOOKS[kind].run + 2 * (weights // BLOCK)
