"""Puts a matrix into the tiles of the native kernels (scales.h), half a million weights at a time and thread.

Each thread runs torch's operations alone. They are short, and where other programs keep a processor busy, operations
that are shared between threads wait for each other: one matrix took 1.1 s with two threads and 0.1 s with one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from model_runtime.native.tile_memory import TILES
from model_runtime.weights.coded.coded_rows import BLOCK, SCALE_DTYPES, Coded, CodedRows, Grid, Kind, Scales

_SLICE_WEIGHTS = 1 << 19  # unpacked at a time
# Of a code: bits in a word of the others' low bits, and in a word of high bits.
_BITS = {
    Kind.Q2: (2, 0),
    Kind.Q3: (2, 1),
    Kind.Q4: (4, 0),
    Kind.Q5: (4, 1),
    Kind.Q6: (4, 2),
    Kind.Q8: (8, 0),
    Kind.LEVELS: (4, 0),
    Kind.FP8: (8, 0),
    Kind.INT8: (8, 0),
    Kind.LEVELS16: (4, 0),
}
_NUMBERS = {Kind.HALF: torch.float16, Kind.BRAIN: torch.bfloat16, Kind.SINGLE: torch.float32}
# Of exponents: 12 * 2^(252 - 128), a doubled level of FP4, and 448 * 2^(247 - 128) are the largest finite weights.
_LARGEST_POWERS = {Kind.LEVELS: 252, Kind.FP8: 247}
COLUMNS = 32  # the kernels need a multiple
_SHORT_RUNS = (
    Kind.Q2,
    Kind.Q3,
    Kind.Q6,
    Kind.LEVELS16,
)  # whose scales the kernels read every 16 columns; of others, every 32
AfterSlice = Callable[[], None]


def _nothing() -> None:
    pass


def tiles_of_coded(matrix: Coded, lanes: int, after_slice: AfterSlice = _nothing) -> dict[str, torch.Tensor]:
    """Its codes, scales and so on under the names of `Matrix` (scales.h). `after_slice` is called whenever some rows
    are done, by several threads. Raises `ValueError` if their sizes do not fit together, or if a scale is not a finite
    number."""
    rows, columns = matrix.shape
    tiles: dict[str, torch.Tensor] = {}

    def pack(start: int, end: int) -> None:
        part = matrix.rows(start, end)
        _check(part, matrix.grid, end - start, columns)
        for name, tensor in _planes(part, matrix.grid):
            _put(tiles, name, tensor, start, rows, lanes)
        after_slice()

    in_slices(pack, rows, columns, lanes)
    return tiles


def tiles_of_numbers(
    numbers: torch.Tensor, lanes: int, after_slice: AfterSlice = _nothing
) -> tuple[Kind, dict[str, torch.Tensor]]:
    """A matrix without codes `[N, K]`: as float16 or bfloat16 if that is lossless, else as float32. `after_slice` as
    above."""
    rows, columns = numbers.shape
    kind = next(kind for kind in _NUMBERS if _holds(numbers, _NUMBERS[kind], lanes, after_slice))
    tiles: dict[str, torch.Tensor] = {}

    def pack(start: int, end: int) -> None:
        _put(tiles, "codes", numbers[start:end].to(_NUMBERS[kind]), start, rows, lanes)
        after_slice()

    in_slices(pack, rows, columns, lanes)
    return kind, tiles


def in_slices(
    pack: Callable[[int, int], None], rows: int, columns: int, lanes: int, weights: int = _SLICE_WEIGHTS
) -> None:
    """Calls `pack` with the first and the last row of each slice, by several threads; the first call is alone, because
    it may allocate what the others write to."""
    slices, threads = list(_slices(rows, columns, lanes, weights)), torch.get_num_threads()
    with _operations_alone():
        pack(*slices[0])
        if len(slices) > 1:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(pack, *zip(*slices[1:], strict=True)))


@contextlib.contextmanager
def _operations_alone() -> Iterator[None]:
    """torch's operations in this thread, and in threads that are started meanwhile, are not shared between threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def padded(rows: int, lanes: int) -> int:
    """A whole number of tile pairs."""
    return -(-rows // (2 * lanes)) * 2 * lanes


def _slices(rows: int, columns: int, lanes: int, weights: int = _SLICE_WEIGHTS) -> Iterator[tuple[int, int]]:
    step = padded(max(1, weights // columns), lanes)
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _holds(numbers: torch.Tensor, dtype: torch.dtype, lanes: int, after_slice: AfterSlice) -> bool:
    """Whether the dtype has all of these numbers."""
    if numbers.dtype == dtype or dtype == torch.float32:
        return True
    rows, columns = numbers.shape
    for start, end in _slices(rows, columns, lanes):
        part = numbers[start:end]
        is_held = torch.equal(part.to(dtype).float(), part.float())
        after_slice()
        if not is_held:
            return False
    return True


def _check(part: CodedRows, grid: Grid, rows: int, columns: int) -> None:
    scales, blocks = (rows, grid.runs(columns)), (rows, columns // BLOCK)
    expected = {"codes": (rows, columns), "scale": scales, "minimum": scales, "zero": scales}
    expected |= {"super_scale": blocks, "super_minimum": blocks}
    for name, shape in expected.items():
        tensor: torch.Tensor | None = getattr(part, name)
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(f"a matrix of {rows} x {columns} has other scales than its blocks need")
        if tensor.dtype.is_floating_point and not torch.isfinite(tensor).all():
            raise ValueError("one of its blocks has a scale that is not a finite number")
    if grid.scales is Scales.POWERS and int(part.scale.max()) > _LARGEST_POWERS[grid.kind]:
        raise ValueError("one of its blocks has a scale that is not a finite number")
    has_other_zeros = part.zero is not None and part.zero.dtype != torch.int8
    if part.scale.dtype != SCALE_DTYPES[grid.scales] or has_other_zeros or not _fits_kernels(grid):
        raise ValueError(f"a matrix of {rows} x {columns} has other scales than its blocks need")


def _fits_kernels(grid: Grid) -> bool:
    return grid.run >= (16 if grid.kind in _SHORT_RUNS else 32) and not grid.run & (grid.run - 1)


def _planes(part: CodedRows, grid: Grid) -> Iterator[tuple[str, torch.Tensor]]:
    low, high = _BITS[grid.kind]
    codes = part.codes.view(torch.uint8)
    yield "codes", _words(codes & (2**low - 1) if high else codes, low)
    if high:
        yield "high", _words(codes >> low, high)
    for name in ("scale", "minimum", "super_scale", "super_minimum", "zero"):
        tensor: torch.Tensor | None = getattr(part, name)
        if tensor is not None:
            yield name, tensor


def _words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes uint8 `[n, K]` as words int32 `[n, K*bits/32]`. Four columns lie in a word's four bytes, at the lowest
    bits, the next four behind them, and so on: one shift and one mask take out four columns."""
    quads = codes.view(codes.shape[0], -1, 8 // bits, 4)
    packed = quads[:, :, 0].contiguous()
    for place in range(1, quads.shape[2]):
        packed |= quads[:, :, place] << (bits * place)
    return packed.view(torch.int32).flatten(1)


def _put(tiles: dict[str, torch.Tensor], name: str, part: torch.Tensor, start: int, all_rows: int, lanes: int) -> None:
    """Writes rows from `start` on, `[n, C]`, into the tiles `[N/lanes, C, lanes]`."""
    if name not in tiles:
        tiles[name] = TILES.zeros((padded(all_rows, lanes) // lanes, part.shape[1], lanes), part.dtype)
    missing = -part.shape[0] % lanes
    rows = torch.cat([part, part.new_zeros(missing, part.shape[1])]) if missing else part
    tiled = rows.reshape(-1, lanes, part.shape[1]).transpose(1, 2)
    tiles[name][start // lanes : start // lanes + tiled.shape[0]] = tiled


def factors_for(grid: Grid, rows: int, columns: int, lanes: int) -> torch.Tensor | None:
    """The grid's `nested` with a factor for the scales of padding rows too, which the kernels read."""
    if grid.scales is not Scales.NESTED or grid.nested is None:
        return None
    scales = padded(rows, lanes) * grid.runs(columns)
    missing = 257 + -(-scales // 256) - grid.nested.numel()
    return torch.cat([grid.nested, grid.nested.new_zeros(max(0, missing))]).contiguous()
