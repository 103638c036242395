"""The blocks of ggml's formats as codes and scales.

Sources: ggml-common.h (`block_q4_K` and so on), ggml-quants.c (`dequantize_row_*`), gguf's `quants.py`, with whose
float32 values every format is compared in the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from model_runtime.weights.coded.codebooks import CODEBOOKS
from model_runtime.weights.coded.coded_rows import CodedRows, Grid, Kind, Scales
from model_runtime.weights.ggml_blocks import GgmlBlocks
from model_runtime.weights.q4_blocks import GROUP, Q4Blocks, Q8Blocks

Blocks = torch.Tensor  # uint8 [n, blocks of a row, bytes of a block]
_IQ4 = torch.tensor([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=torch.float32)
_FP4 = torch.tensor([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], dtype=torch.float32)  # doubled


@dataclass(frozen=True, slots=True)
class Format:
    """A format: its grid, the bytes of a block, and how blocks are taken apart."""

    grid: Grid
    block_bytes: int
    split: Callable[[Blocks], CodedRows]


@dataclass(frozen=True, slots=True)
class CodedGgml:
    """Blocks of a file. `bytes_of_rows` uint8 `[N, bytes of a row]`."""

    bytes_of_rows: torch.Tensor
    format: Format

    @property
    def grid(self) -> Grid:
        return self.format.grid

    @property
    def shape(self) -> tuple[int, int]:
        one = self.rows(0, 1).codes
        return self.bytes_of_rows.shape[0], one.shape[1]

    def rows(self, start: int, end: int) -> CodedRows:
        """See `Coded`."""
        rows = self.bytes_of_rows[start:end]
        return self.format.split(rows.reshape(rows.shape[0], -1, self.format.block_bytes))


@dataclass(frozen=True, slots=True)
class CodedQ4:
    """Q4_0 or Q4_1 as they are cached; `offset` 8 where the minimums say no more than the scales."""

    blocks: Q4Blocks
    offset: int

    @property
    def grid(self) -> Grid:
        return Grid(Kind.Q4, Scales.HALVES, GROUP, self.offset)

    @property
    def shape(self) -> tuple[int, int]:
        return self.blocks.shape

    def rows(self, start: int, end: int) -> CodedRows:
        """See `Coded`."""
        part = Q4Blocks(*(t[start:end] for t in (self.blocks.nibbles, self.blocks.scale, self.blocks.minimum)))
        codes = _halves(part.nibbles.reshape(part.nibbles.shape[0], -1, GROUP // 2))
        return CodedRows(codes, part.scale, None if self.offset else part.minimum)


@dataclass(frozen=True, slots=True)
class CodedQ8:
    """Q8_0 as it is cached."""

    blocks: Q8Blocks

    @property
    def grid(self) -> Grid:
        return Grid(Kind.Q8, Scales.HALVES, GROUP)

    @property
    def shape(self) -> tuple[int, int]:
        return self.blocks.codes.shape[0], self.blocks.codes.shape[1]

    def rows(self, start: int, end: int) -> CodedRows:
        """See `Coded`."""
        return CodedRows(self.blocks.codes[start:end], self.blocks.scale[start:end])


def coded_ggml(stored: GgmlBlocks | Q4Blocks | Q8Blocks) -> CodedGgml | CodedQ4 | CodedQ8 | None:
    """The matrix as codes and scales; None for a format that is not one of these, and for a stack of matrices."""
    if isinstance(stored, Q4Blocks):
        return CodedQ4(stored, 8 if torch.equal(stored.minimum, stored.scale * -8) else 0)
    if isinstance(stored, Q8Blocks):
        return CodedQ8(stored)
    known = FORMATS.get(stored.kind)
    return CodedGgml(stored.rows, known) if known is not None and stored.rows.ndim == 2 else None


def _half(blocks: Blocks, start: int) -> torch.Tensor:
    return blocks[..., start : start + 2].contiguous().view(torch.float16).squeeze(-1)


def _flat(parts: torch.Tensor, rows: int) -> torch.Tensor:
    return parts.reshape(rows, -1)


def _spread(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Fields of so many bits, uint8 `[.., width]` to `[.., 8/bits, width]`, the lowest field first."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8).unsqueeze(-1)
    return (packed.unsqueeze(-2) >> shifts) & ((1 << bits) - 1)


def _halves(packed: torch.Tensor) -> torch.Tensor:
    """Blocks of sixteen bytes, uint8 `[n, blocks, 16]`: a byte has column j and column j + 16."""
    return _flat(_spread(packed, 4), packed.shape[0])


def _in_runs_of_32(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """K-quants: 32 bytes have one field each of 32 columns, then the next field: `[n, blocks, bytes]` to `[n, K]`."""
    rows, blocks, _ = packed.shape
    return _flat(_spread(packed.reshape(rows, blocks, -1, 32), bits), rows)


def _high_bits(blocks: Blocks, start: int) -> torch.Tensor:
    """Four bytes, a bit for each column in turn: uint8 `[n, K]`, 0 or 1."""
    packed = blocks[..., start : start + 4]
    shifts = torch.arange(8, dtype=torch.uint8)
    return _flat((packed.unsqueeze(-1) >> shifts) & 1, blocks.shape[0])


def _q5_0(blocks: Blocks) -> CodedRows:
    return CodedRows(_halves(blocks[..., 6:]) | _high_bits(blocks, 2) << 4, _half(blocks, 0))


def _q5_1(blocks: Blocks) -> CodedRows:
    return CodedRows(_halves(blocks[..., 8:]) | _high_bits(blocks, 4) << 4, _half(blocks, 0), _half(blocks, 2))


def _scales_and_minimums(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The 6-bit scales and minimums of Q4_K and Q5_K, int8 `[n, blocks * 8]` each, from twelve bytes."""
    scale, minimum, both = packed.reshape(*packed.shape[:2], 3, 4).unbind(2)
    scales = torch.cat([scale & 63, (both & 15) | ((scale >> 2) & 48)], -1)
    minimums = torch.cat([minimum & 63, (both >> 4) | ((minimum >> 2) & 48)], -1)
    return _flat(scales, packed.shape[0]).view(torch.int8), _flat(minimums, packed.shape[0]).view(torch.int8)


def _q4_k(blocks: Blocks) -> CodedRows:
    scale, minimum = _scales_and_minimums(blocks[..., 4:16])
    return CodedRows(_in_runs_of_32(blocks[..., 16:], 4), scale, minimum, _half(blocks, 0), _half(blocks, 2))


def _q5_k(blocks: Blocks) -> CodedRows:
    scale, minimum = _scales_and_minimums(blocks[..., 4:16])
    codes = _in_runs_of_32(blocks[..., 48:], 4) | _in_runs_of_32(blocks[..., 16:48], 1) << 4
    return CodedRows(codes, scale, minimum, _half(blocks, 0), _half(blocks, 2))


def _q6_k(blocks: Blocks) -> CodedRows:
    rows, count, _ = blocks.shape
    low = _spread(blocks[..., :128].reshape(rows, count, 2, 64), 4)
    codes = _flat(low, rows) | _in_runs_of_32(blocks[..., 128:192], 2) << 4
    return CodedRows(codes, _signed(blocks[..., 192:208]), super_scale=_half(blocks, 208))


def _q2_k(blocks: Blocks) -> CodedRows:
    scale = _flat(blocks[..., :16], blocks.shape[0])
    codes = _in_runs_of_32(blocks[..., 16:80], 2)
    return CodedRows(codes, scale, super_scale=_half(blocks, 80), super_minimum=_half(blocks, 82))


def _q3_k(blocks: Blocks) -> CodedRows:
    rows = blocks.shape[0]
    codes = _in_runs_of_32(blocks[..., 32:96], 2) | _in_runs_of_32(blocks[..., :32], 1) << 2
    low = _spread(blocks[..., 96:104], 4).flatten(2)
    high = _spread(blocks[..., 104:108], 2).flatten(2)
    scale = _flat((low | high << 4).view(torch.int8) - 32, rows)
    return CodedRows(codes, scale, super_scale=_half(blocks, 108))


def _iq4_nl(blocks: Blocks) -> CodedRows:
    return CodedRows(_halves(blocks[..., 2:]), _half(blocks, 0))


def _iq4_xs(blocks: Blocks) -> CodedRows:
    rows, count, _ = blocks.shape
    low = _spread(blocks[..., 4:8], 4).transpose(-1, -2).reshape(rows, count, 8)
    high = _spread(blocks[..., 2:4], 2).transpose(-1, -2).reshape(rows, count, 8)
    scale = _flat((low | high << 4).view(torch.int8) - 32, rows)
    codes = _halves(blocks[..., 8:].reshape(rows, -1, 16))
    return CodedRows(codes, scale, super_scale=_half(blocks, 0))


def _mxfp4(blocks: Blocks) -> CodedRows:
    return CodedRows(_halves(blocks[..., 1:]), _flat(blocks[..., 0], blocks.shape[0]))


def _signed(packed: torch.Tensor) -> torch.Tensor:
    return _flat(packed, packed.shape[0]).view(torch.int8)


FORMATS = {
    "Q5_0": Format(Grid(Kind.Q5, Scales.HALVES, 32, 16), 22, _q5_0),
    "Q5_1": Format(Grid(Kind.Q5, Scales.HALVES, 32), 24, _q5_1),
    "Q2_K": Format(Grid(Kind.Q2, Scales.PAIRS, 16), 84, _q2_k),
    "Q3_K": Format(Grid(Kind.Q3, Scales.SUPER, 16, 4), 110, _q3_k),
    "Q4_K": Format(Grid(Kind.Q4, Scales.SUPER, 32), 144, _q4_k),
    "Q5_K": Format(Grid(Kind.Q5, Scales.SUPER, 32), 176, _q5_k),
    "Q6_K": Format(Grid(Kind.Q6, Scales.SUPER, 16, 32), 210, _q6_k),
    "IQ4_NL": Format(Grid(Kind.LEVELS, Scales.HALVES, 32, 0, _IQ4), 18, _iq4_nl),
    "IQ4_XS": Format(Grid(Kind.LEVELS, Scales.SUPER, 32, 0, _IQ4), 136, _iq4_xs),
    "MXFP4": Format(Grid(Kind.LEVELS, Scales.POWERS, 32, 0, _FP4), 17, _mxfp4),
} | {kind: Format(book.grid, book.block_bytes, book.split) for kind, book in CODEBOOKS.items()}
# These are kept in a form of their own (`q4_blocks`).
NATIVE_FORMATS = frozenset(FORMATS) | {"Q4_0", "Q4_1", "Q8_0"}
