"""NF4 matrices on disk as they were quantised: one safetensors file, written and read one matrix at a time.

A matrix `x` is `x.nf4` (uint8 `[N, K/2]`, the first of two codes in the high bits), `x.scale` (uint8 `[N, K/64]`,
places in double quantization's table) and `x.nested` (float32: that table, the offset, the factors of 256 scales each).
`levels` (float32 `[16]`) are NF4's. Nothing is packed for a processor, so that one file serves any CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from model_runtime.weights.coded.coded_rows import Grid, Kind, Scales
from model_runtime.weights.coded.four_bits import CodedFourBits
from model_runtime.weights.coded.nf4 import RUN, SCALES_OF_A_FACTOR, nf4_levels, quantise_nf4
from model_runtime.weights.stored_weights import MappedTensors, Tensors, save_tensors

FILE = "nf4.safetensors"
_TABLE = 256  # entries of double quantization's table, which the offset follows
_LEVELS = "levels"


@dataclass(frozen=True, slots=True)
class Numbers:
    """A matrix `[N, K]` that is read when it is quantised: its shape, and its 16- or 32-bit numbers."""

    shape: tuple[int, int]
    read: Callable[[], torch.Tensor]


class Nf4File:
    """What `write_nf4` wrote. Its matrices are views of the mapped file: pack or copy them before `let_go`."""

    def __init__(self, directory: Path) -> None:
        self._file = MappedTensors(directory / FILE)
        self._levels = self._file.tensor(_LEVELS).clone()

    @property
    def nbytes(self) -> int:
        """Bytes of all matrices."""
        return self._file.nbytes

    def coded(self, name: str) -> CodedFourBits:
        """Raises `KeyError` for a matrix that is not there."""
        packed, scale, nested = (self._file.tensor(f"{name}.{part}") for part in ("nf4", "scale", "nested"))
        grid = Grid(Kind.LEVELS, Scales.NESTED, RUN, 0, self._levels, nested.clone())
        return CodedFourBits(packed.flatten(), scale.flatten(), grid, (packed.shape[0], packed.shape[1] * 2))

    def let_go(self) -> None:
        """See `MappedTensors`."""
        self._file.let_go()


def nf4_file_bytes(matrices: Mapping[str, Numbers]) -> int:
    """Bytes of what `write_nf4` will write, but for its header."""
    return sum(tensor.nbytes for one in matrices.values() for tensor in _announced("", one.shape).values())


def write_nf4(
    matrices: Mapping[str, Numbers],
    directory: Path,
    progress: Callable[[int, int], None],
    after_slice: Callable[[], None],
) -> None:
    """Quantises the matrices one after the other into `directory`. `progress` as in `save_tensors`; `after_slice` is
    called whenever some rows are done."""
    levels = nf4_levels()
    tensors = {_LEVELS: Tensors({_LEVELS: levels.to("meta")}, lambda: {_LEVELS: levels})}

    def group(name: str, numbers: Numbers) -> Tensors:
        return Tensors(_announced(name, numbers.shape), lambda: _parts(name, numbers, after_slice))

    tensors |= {name: group(name, numbers) for name, numbers in matrices.items()}
    save_tensors(tensors, directory / FILE, progress)


def _parts(name: str, numbers: Numbers, after_slice: Callable[[], None]) -> dict[str, torch.Tensor]:
    coded = quantise_nf4(numbers.read(), after_slice)
    assert coded.grid.nested is not None
    rows = numbers.shape[0]
    parts = (coded.packed.view(rows, -1), coded.scale.view(rows, -1), coded.grid.nested)
    return dict(zip(_names(name), parts, strict=True))


def _announced(name: str, shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    """The tensors of a matrix without their content."""
    rows, columns = shape
    runs = columns // RUN
    factors = -(-rows * runs // SCALES_OF_A_FACTOR)
    parts = (
        torch.empty(rows, columns // 2, dtype=torch.uint8, device="meta"),
        torch.empty(rows, runs, dtype=torch.uint8, device="meta"),
        torch.empty(_TABLE + 1 + factors, dtype=torch.float32, device="meta"),
    )
    return dict(zip(_names(name), parts, strict=True))


def _names(name: str) -> tuple[str, str, str]:
    return f"{name}.nf4", f"{name}.scale", f"{name}.nested"
