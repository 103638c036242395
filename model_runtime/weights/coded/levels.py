"""MXFP4 as safetensors have it: codes of FP4 (E2M1), two a byte, and exponents of 32 columns.

Source: transformers' `integrations/mxfp4.py` (`_convert_moe_packed_tensors`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from model_runtime.weights.coded.coded_rows import CodedRows, Grid, Kind, Scales

_RUN = 32
# Doubled, since the kernels' powers are half of what the exponents say.
FP4_LEVELS = torch.tensor([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], dtype=torch.float32)


@dataclass(frozen=True, slots=True)
class CodedLevels:
    """`blocks` uint8 `[N, K/32, 16]`, the first of two codes in the low bits; `exponents` uint8 `[N, K/32]`: 127 is
    2^0."""

    blocks: torch.Tensor
    exponents: torch.Tensor

    @property
    def grid(self) -> Grid:
        return Grid(Kind.LEVELS, Scales.POWERS, _RUN, 0, FP4_LEVELS)

    @property
    def shape(self) -> tuple[int, int]:
        return self.blocks.shape[0], self.blocks.shape[1] * _RUN

    def rows(self, start: int, end: int) -> CodedRows:
        """See `Coded`."""
        packed = self.blocks[start:end]
        codes = torch.stack([packed & 15, packed >> 4], -1).view(packed.shape[0], -1)
        return CodedRows(codes, self.exponents[start:end].contiguous())
