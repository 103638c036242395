"""The 4-bit and 8-bit blocks of a GGUF file, as tensors whose rows can be permuted without changing a value.

Sources: ggml's block layouts `block_q4_0`, `block_q4_1`, `block_q8_0` (ggml-common.h), 32 weights per block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

GROUP = 32
Q4_0_BYTES = 2 + GROUP // 2
Q4_1_BYTES = 4 + GROUP // 2
Q8_0_BYTES = 2 + GROUP


@dataclass(frozen=True, slots=True)
class Q4Blocks:
    """A matrix `[N, K]` on a 4-bit grid: `w = scale * q + minimum` for each run of 32 weights in a row.

    `nibbles` uint8 `[N, K/2]`: sixteen bytes per block; byte j holds weight j in its low and weight j+16 in its high
    bits.
    `scale`, `minimum` float16 `[N, K/32]`, exactly as the file has them.
    """

    nibbles: torch.Tensor
    scale: torch.Tensor
    minimum: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """`(N, K)`: output and input features."""
        return self.nibbles.shape[0], self.nibbles.shape[1] * 2

    def codes(self) -> torch.Tensor:
        """The 4-bit codes, int32 `[N, K]`, 0 to 15."""
        rows, columns = self.shape
        halves = self.nibbles.view(rows, columns // GROUP, 1, GROUP // 2)
        codes = torch.empty(rows, columns // GROUP, 2, GROUP // 2, dtype=torch.int32)
        codes[:, :, :1] = halves & 15
        codes[:, :, 1:] = halves >> 4
        return codes.view(rows, columns)

    def dequantise(self) -> torch.Tensor:
        """The weights, float32 `[N, K]`, exactly as the file means them."""
        rows, columns = self.shape
        codes = self.codes().view(rows, columns // GROUP, GROUP).to(torch.float32)
        codes.mul_(self.scale.float().unsqueeze(-1)).add_(self.minimum.float().unsqueeze(-1))
        return codes.view(rows, columns)


@dataclass(frozen=True, slots=True)
class Q8Blocks:
    """A matrix `[N, K]` on an 8-bit grid: `w = scale * code`. `codes` int8 `[N, K]`, `scale` float16 `[N, K/32]`."""

    codes: torch.Tensor
    scale: torch.Tensor

    def dequantise(self) -> torch.Tensor:
        """The weights, float32 `[N, K]`, exactly as the file means them."""
        rows, columns = self.codes.shape
        blocks = self.codes.view(rows, columns // GROUP, GROUP).to(torch.float32)
        return blocks.mul_(self.scale.float().unsqueeze(-1)).view(rows, columns)


def read_q4_1(rows: torch.Tensor) -> Q4Blocks:
    """From the file's bytes, uint8 `[N, K/32 * 20]`: a block is scale, minimum, sixteen bytes of nibbles."""
    blocks = rows.view(rows.shape[0], -1, Q4_1_BYTES)
    return Q4Blocks(_nibbles(blocks, 4), _half(blocks, 0), _half(blocks, 2))


def read_q4_0(rows: torch.Tensor) -> Q4Blocks:
    """From the file's bytes, uint8 `[N, K/32 * 18]`: `w = scale * (q - 8)`, so the minimum is -8 times the scale, which
    float16 holds exactly (three powers of two up). A scale above 8,188 overflows to an infinite minimum."""
    blocks = rows.view(rows.shape[0], -1, Q4_0_BYTES)
    scale = _half(blocks, 0)
    return Q4Blocks(_nibbles(blocks, 2), scale, scale * -8)


def read_q8_0(rows: torch.Tensor) -> Q8Blocks:
    """From the file's bytes, uint8 `[N, K/32 * 34]`: a block is a scale and 32 signed bytes."""
    blocks = rows.view(rows.shape[0], -1, Q8_0_BYTES)
    codes = blocks[..., 2:].contiguous().view(torch.int8)
    return Q8Blocks(codes.view(rows.shape[0], -1), _half(blocks, 0))


def _half(blocks: torch.Tensor, start: int) -> torch.Tensor:
    return blocks[..., start : start + 2].contiguous().view(torch.float16).squeeze(-1)


def _nibbles(blocks: torch.Tensor, start: int) -> torch.Tensor:
    return blocks[..., start:].contiguous().view(blocks.shape[0], -1)
