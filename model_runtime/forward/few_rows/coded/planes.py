"""A block-quantised matrix as cuda/coded.cu reads it: rows of codes, and rows of scales as they were stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from model_runtime.weights.coded.coded_rows import BLOCK, SCALE_DTYPES, Coded, CodedRows, Grid, Kind, Scales

UNIT = 8  # columns whose codes lie together
_COLUMNS = 32  # a row has a multiple
_LEAST_RUN = 16
_SLICE_WEIGHTS = 1 << 22  # unpacked at a time
# Of a code: its bits in `codes` and in `high`, and MEANING of coded.cu.
WHOLE, SIGNED, LEVEL, E4M3, INT8 = range(5)
_FORMS = {
    Kind.Q2: (2, 0, WHOLE),
    Kind.Q3: (2, 1, WHOLE),
    Kind.Q4: (4, 0, WHOLE),
    Kind.Q5: (4, 1, WHOLE),
    Kind.Q6: (4, 2, WHOLE),
    Kind.Q8: (8, 0, SIGNED),
    Kind.LEVELS: (4, 0, LEVEL),
    Kind.LEVELS16: (4, 0, LEVEL),
    Kind.FP8: (8, 0, E4M3),
    Kind.INT8: (8, 0, INT8),
}


@dataclass(frozen=True, slots=True)
class Form:
    """What a kernel is compiled for."""

    low: int
    high: int
    meaning: int
    scales: Scales

    @property
    def macros(self) -> Mapping[str, int]:
        """As coded.cu names them."""
        return {"LOW": self.low, "HIGH": self.high, "MEANING": self.meaning, "SCALES": int(self.scales)}


@dataclass(frozen=True, slots=True)
class CodedPlanes:
    """A matrix `[rows, columns]` on one device. `tensors` are named as in `Coded` (coded.cu): `codes` and `high` uint8
    `[rows, columns * bits / 8]`, `scale`, `minimum`, `zero` `[rows, runs]`, `super_scale`, `super_minimum` float16
    `[rows, columns / 256]`, `levels` float32 `[16]`, `nested` float32 (`Grid`)."""

    rows: int
    columns: int
    grid: Grid
    form: Form
    tensors: Mapping[str, torch.Tensor]
    order: torch.Tensor | None

    @property
    def nbytes(self) -> int:
        """The size of its tensors in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def taken(self, rows: torch.Tensor) -> CodedPlanes:
        """These rows, `[n]`, as a matrix of their own. Not of `Scales.NESTED`, whose factors are numbered across
        rows."""
        of_all = {name: tensor for name, tensor in self.tensors.items() if name in ("levels", "nested")}
        of_rows = {name: t.index_select(0, rows) for name, t in self.tensors.items() if name not in of_all}
        return replace(self, rows=rows.numel(), tensors=of_rows | of_all)


def planes_of(matrix: Coded, device: torch.device) -> CodedPlanes:
    """Packs some rows at a time on the CPU. Raises `ValueError` for what the kernels cannot read."""
    rows, columns = matrix.shape
    grid = matrix.grid
    if columns % _COLUMNS or grid.kind not in _FORMS or grid.run < _LEAST_RUN or grid.run & (grid.run - 1):
        raise ValueError(f"{columns} columns in runs of {grid.run}")
    low, high, meaning = _FORMS[grid.kind]
    tensors = dict[str, torch.Tensor]()
    step = max(1, _SLICE_WEIGHTS // columns)
    for start in range(0, rows, step):
        end = min(start + step, rows)
        part = matrix.rows(start, end)
        _check(part, grid, end - start, columns)
        for name, tensor in _planes(part, low, high):
            if name not in tensors:
                tensors[name] = torch.empty((rows, tensor.shape[1]), dtype=tensor.dtype, device=device)
            tensors[name][start:end] = tensor.to(device)
    for name, table in (("levels", grid.levels), ("nested", grid.nested)):
        if table is not None:
            tensors[name] = table.float().contiguous().to(device)
    if grid.scales is Scales.NESTED and tensors["nested"].numel() < 257 + -(-rows * grid.runs(columns) // 256):
        raise ValueError("fewer factors than its scales need")
    order = None if grid.order is None else grid.order.to(device)
    return CodedPlanes(rows, columns, grid, Form(low, high, meaning, grid.scales), tensors, order)


def _check(part: CodedRows, grid: Grid, rows: int, columns: int) -> None:
    runs, blocks = (rows, grid.runs(columns)), (rows, columns // BLOCK)
    shapes = {"codes": (rows, columns), "scale": runs, "minimum": runs, "zero": runs}
    shapes |= {"super_scale": blocks, "super_minimum": blocks}
    for name, shape in shapes.items():
        tensor: torch.Tensor | None = getattr(part, name)
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"a {name} of {list(tensor.shape)} for {rows} x {columns}")
    needs = {Scales.SUPER: (part.super_scale,), Scales.PAIRS: (part.super_scale, part.super_minimum)}
    is_whole = all(one is not None and columns % BLOCK == 0 for one in needs.get(grid.scales, ()))
    has_odd_minimum = part.minimum is not None and (
        grid.scales not in (Scales.HALVES, Scales.SUPER)
        or part.minimum.dtype != part.scale.dtype
        or (grid.scales is Scales.SUPER and part.super_minimum is None)
    )
    has_odd_zero = part.zero is not None and part.zero.dtype != torch.int8
    if part.scale.dtype != SCALE_DTYPES[grid.scales] or not is_whole or has_odd_minimum or has_odd_zero:
        raise ValueError("other scales than the kernels read")


def _planes(part: CodedRows, low: int, high: int) -> Iterator[tuple[str, torch.Tensor]]:
    codes = part.codes.contiguous().view(torch.uint8)
    yield "codes", _packed(codes & (2**low - 1) if high else codes, low)
    if high:
        yield "high", _packed(codes >> low, high)
    for name in ("scale", "minimum", "zero", "super_scale", "super_minimum"):
        tensor: torch.Tensor | None = getattr(part, name)
        if tensor is not None:
            yield name, tensor


def _packed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 `[n, K]` to `[n, K * bits / 8]`, the first of a byte's codes in its lowest bits."""
    fields = codes.view(codes.shape[0], -1, 8 // bits)
    packed = fields[:, :, 0].clone()
    for place in range(1, fields.shape[2]):
        packed |= fields[:, :, place] << (bits * place)
    return packed
