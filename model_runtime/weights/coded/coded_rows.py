"""A block-quantised matrix, whatever its format: codes, scales and minimums, one entry for each that the format has.

Codes have 2 to 8 bits, are numbers of 8 bits or places in a table of sixteen levels. A run of 16, 32, 64 or more
columns shares a scale, which may be a byte times a half that 256 columns share. Nothing here is rounded, and rows can
be taken in any order.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, runtime_checkable

import torch

BLOCK = 256  # columns of a super-block
_LEAST_RUN = 32  # columns, of what is not a format of ggml


class Kind(IntEnum):
    """How a matrix is stored; the same numbers as in scales.h."""

    Q2 = 0
    Q3 = 1
    Q4 = 2
    Q5 = 3
    Q6 = 4
    Q8 = 5
    LEVELS = 6
    FP8 = 7
    INT8 = 8
    LEVELS16 = 9
    HALF = 10
    BRAIN = 11
    SINGLE = 12


class Scales(IntEnum):
    """How scales are stored; the same numbers as in scales.h, which says what they mean."""

    HALVES = 0
    SUPER = 1
    PAIRS = 2
    POWERS = 3
    FLOATS = 4
    NESTED = 5
    BRAINS = 6


SCALE_DTYPES = {
    Scales.HALVES: torch.float16,
    Scales.SUPER: torch.int8,
    Scales.PAIRS: torch.uint8,
    Scales.POWERS: torch.uint8,
    Scales.FLOATS: torch.float32,
    Scales.NESTED: torch.uint8,
    Scales.BRAINS: torch.bfloat16,
}


@dataclass(frozen=True, slots=True)
class Grid:
    """What all rows of a format have in common: `run` columns, a power of two, share a scale; the last run of a row may
    be shorter. A weight is `scale * (code - offset)`, `scale * (code - zero)` or `scale * code + minimum` if there are
    zeros or minimums, or `scale * levels[code]`. `order` int32 `[K]`: which input each column of the codes belongs to.
    `nested` float32 `[257 + ..]`: the table of 256 numbers that scales are places in, what is added to each, and the
    factors of 256 scales each."""

    kind: Kind
    scales: Scales
    run: int
    offset: int = 0
    levels: torch.Tensor | None = None
    nested: torch.Tensor | None = None
    order: torch.Tensor | None = None

    def runs(self, columns: int) -> int:
        """How many scales a row of so many columns has."""
        return -(-columns // self.run)


@dataclass(frozen=True, slots=True)
class CodedRows:
    """Rows of a matrix. `codes` uint8 `[n, K]`, int8 for `Kind.Q8` and `Kind.INT8`; `scale` and `minimum` `[n, runs]`
    in the dtype of the grid's scales; `super_scale` and `super_minimum` float16 `[n, K/256]`; `zero` int8 `[n,
    runs]`."""

    codes: torch.Tensor
    scale: torch.Tensor
    minimum: torch.Tensor | None = None
    super_scale: torch.Tensor | None = None
    super_minimum: torch.Tensor | None = None
    zero: torch.Tensor | None = None


@runtime_checkable
class Coded(Protocol):
    """A matrix whose rows are read a few at a time, so that its unpacked codes are never all in memory."""

    @property
    def grid(self) -> Grid: ...

    @property
    def shape(self) -> tuple[int, int]:
        """`(N, K)`: output and input features."""

    def rows(self, start: int, end: int) -> CodedRows:
        """Rows `start..end`."""


def fitted_run(group: int, columns: int) -> tuple[int, int]:
    """Columns of a run, a power of two, and how many runs make up a group of `group` columns of a row of `columns`. A
    group that is as long as the row is one run. Raises `ValueError` for groups that no run divides."""
    if group >= columns:
        return max(_LEAST_RUN, 1 << (columns - 1).bit_length()), 1
    run = group & -group
    if run < _LEAST_RUN:
        raise ValueError(f"groups of {group} columns")
    return run, group // run
