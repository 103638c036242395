"""Weights in the layout of the native CPU kernels: tiles as wide as a register, at the bits they were shipped with."""

from __future__ import annotations

import ctypes
import math
import operator
from functools import cache

import torch
from torch import nn

from model_runtime.native.native_library import MatrixStruct
from model_runtime.weights.coded.coded_rows import Coded, Grid, Kind
from model_runtime.weights.coded.ggml_formats import coded_ggml
from model_runtime.weights.coded.tiles import (
    COLUMNS,
    AfterSlice,
    factors_for,
    padded,
    tiles_of_coded,
    tiles_of_numbers,
)
from model_runtime.weights.ggml_blocks import GgmlBlocks
from model_runtime.weights.q4_blocks import Q4Blocks, Q8Blocks
from model_runtime.weights.stored_weights import Stored

__all__ = ["COLUMNS", "Kind", "NativeEmbedding", "NativeLinear", "NativeMatrix", "padded_rows"]


_MOST, _LEAST, _UNITS = 127, 100, 1000  # codes of the largest level that are tried, and how many


class NativeMatrix:
    """A read-only weight matrix `[N, K]`, K a multiple of 32.

    Its values are the file's own: blocks keep their codes and scales; other numbers are stored as float16 or bfloat16
    if that is lossless, else as float32.
    """

    __slots__ = ("columns", "is_dequantised", "kernels", "kind", "order", "rows", "struct", "tensors")

    def __init__(
        self,
        stored: Stored | Coded,
        bias: torch.Tensor | None,
        kernels: ctypes.CDLL,
        after_slice: AfterSlice = lambda: None,
    ) -> None:
        """`after_slice` is called whenever some rows of `stored` were read. Raises `ValueError` for sizes that do not
        fit together, and for scales that are no finite numbers."""
        lanes, matrix = int(kernels.keepwarm_lanes()), _coded_or_numbers(stored)
        self.rows, self.columns = int(matrix.shape[0]), int(matrix.shape[1])
        self.is_dequantised = isinstance(matrix, torch.Tensor) and matrix is not stored
        self.kernels = kernels
        if self.columns % COLUMNS:
            raise ValueError(f"a native matrix needs a multiple of {COLUMNS} columns, not {self.columns}")
        if bias is not None and tuple(bias.shape) != (self.rows,):
            raise ValueError(f"a bias of {list(bias.shape)} numbers does not belong to {self.rows} outputs")
        grid: Grid | None = None
        self.order: torch.Tensor | None = None
        tables: dict[str, torch.Tensor | None] = {}
        unit = 1.0
        if isinstance(matrix, torch.Tensor):
            self.kind, tiles = tiles_of_numbers(matrix, lanes, after_slice)
        else:
            grid, tiles = matrix.grid, tiles_of_coded(matrix, lanes, after_slice)
            self.kind, self.order = grid.kind, grid.order
            tables = {"levels": grid.levels, "nested": factors_for(grid, self.rows, self.columns, lanes)}
            if grid.levels is not None:
                codes, unit = _byte_levels(tuple(grid.levels.tolist()))
                tables["level_bytes"] = torch.tensor(codes, dtype=torch.int8)
        tables["order"] = self.order
        tables["bias"] = None if bias is None else _lengthened(bias.float(), padded(self.rows, lanes))
        self._point_at(grid, unit, tiles | {name: table for name, table in tables.items() if table is not None})

    def _point_at(self, grid: Grid | None, unit: float, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = list(tensors.values())
        pointers = {name: tensor.data_ptr() for name, tensor in tensors.items()}
        self.struct = MatrixStruct(
            **pointers,
            kind=int(self.kind),
            rows=self.rows,
            columns=self.columns,
            scales=0 if grid is None else int(grid.scales),
            shift=0 if grid is None else grid.run.bit_length() - 1,
            offset=0 if grid is None else grid.offset,
            unit=unit,
        )

    def take_bytes(self, count: int = 1) -> bool:
        """From now on activations are rounded to whole numbers of `count` bytes, 1 or 2, with a scale for 32 columns,
        and multiplied as such, where this matrix has codes or levels: for two bytes only levels that
        are exact as multiples of their unit. Returns whether it has."""
        is_exact = math.frexp(self.struct.unit)[0] == 0.5  # a power of two
        is_whole = self.kind <= Kind.LEVELS and (count == 1 or is_exact)
        self.struct.takes_bytes = count if is_whole else 0
        return is_whole

    @property
    def has_level_unit(self) -> bool:
        """Whether its levels are no whole numbers, but multiplied by activations as such (see `_byte_levels`)."""
        return bool(self.struct.takes_bytes) and self.struct.unit != 1

    @property
    def nbytes(self) -> int:
        """The size of its tensors in bytes."""
        return sum(t.nbytes for t in self.tensors)

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """`x` float32 `[M, K]` to float32 `[M, N]`, bias added, by the native kernel. A row gets the same bits whatever
        other rows are computed with it."""
        if x.shape[1] != self.columns:
            raise ValueError(f"{x.shape[1]} inputs do not fit a matrix with {self.columns} columns")
        y = torch.empty(x.shape[0], padded_rows(self.rows, self.kernels))
        x = x.contiguous() if self.order is None else x.index_select(1, self.order)
        if self.kernels.keepwarm_multiply(
            ctypes.byref(self.struct), x.shape[0], x.data_ptr(), y.data_ptr(), torch.get_num_threads()
        ):
            raise torch.OutOfMemoryError("out of memory")
        return y[:, : self.rows]

    def take(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows `ids` int64 `[n]` as numbers, float32 `[n, K]`: exactly the weights that `multiply` sees. Raises
        `IndexError` for a row that does not exist."""
        if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < self.rows):
            raise IndexError(f"there are rows 0 to {self.rows - 1}, not {ids.min()} to {ids.max()}")
        numbers, places = torch.empty(ids.numel(), self.columns), ids.to(torch.int32).contiguous()
        self.kernels.keepwarm_rows(
            ctypes.byref(self.struct), ids.numel(), places.data_ptr(), numbers.data_ptr(), torch.get_num_threads()
        )
        return numbers if self.order is None else torch.empty_like(numbers).index_copy_(1, self.order.long(), numbers)


class NativeLinear(nn.Module):
    """`nn.Linear` on a `NativeMatrix`: `[.., K]` to float32 `[.., N]`."""

    def __init__(self, matrix: NativeMatrix) -> None:
        super().__init__()
        self.matrix: NativeMatrix | None = matrix
        self.in_features, self.out_features = matrix.columns, matrix.rows
        self.hidden_bytes = matrix.nbytes

    @property
    def weight(self) -> torch.Tensor:
        """See `stand_in`."""
        return stand_in(self.out_features, self.in_features)

    def release(self) -> None:
        """Frees the matrix; the layer cannot be used afterwards."""
        self.matrix, self.hidden_bytes = None, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same leading dimensions, `out_features` last."""
        if self.matrix is None:
            raise RuntimeError("this model was unloaded")
        rows = x.reshape(-1, x.shape[-1]).float()
        return self.matrix.multiply(rows).reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        kind = "" if self.matrix is None else f", {self.matrix.kind.name}"
        return f"in_features={self.in_features}, out_features={self.out_features}{kind}"


class NativeEmbedding(nn.Module):
    """`nn.Embedding` on a `NativeMatrix`, which may also be the head's: ids `[..]` to float32 `[.., K]`. Only the rows
    that are looked up are de-quantised. `factor` multiplies them (Gemma)."""

    def __init__(self, matrix: NativeMatrix, *, is_shared: bool, factor: float = 1.0) -> None:
        super().__init__()
        self.matrix: NativeMatrix | None = matrix
        self.num_embeddings, self.embedding_dim = matrix.rows, matrix.columns
        self.factor = factor
        self.hidden_bytes = 0 if is_shared else matrix.nbytes

    @property
    def weight(self) -> torch.Tensor:
        """See `stand_in`."""
        return stand_in(self.num_embeddings, self.embedding_dim)

    def release(self) -> None:
        """Frees the matrix; the layer cannot be used afterwards."""
        self.matrix, self.hidden_bytes = None, 0

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """float32 `[.., K]`."""
        if self.matrix is None:
            raise RuntimeError("this model was unloaded")
        rows = self.matrix.take(token_ids.reshape(-1))
        if self.factor != 1.0:
            rows *= self.factor
        return rows.view(*token_ids.shape, self.embedding_dim)


def stand_in(
    rows: int, columns: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """For models whose code asks a layer's weight for its device, dtype or shape (MPT, Llama 4): it has these, and four
    bytes. What computes with it gets no numbers, and a model whose logits are none is refused when it is loaded. It is
    made on its device: a copy would have all its numbers."""
    return torch.full((1, 1), torch.nan, device=device, dtype=dtype).expand(rows, columns)


def padded_rows(rows: int, kernels: ctypes.CDLL) -> int:
    """The width that the kernels write for `rows` outputs: a whole number of tile pairs."""
    return padded(rows, int(kernels.keepwarm_lanes()))


def _coded_or_numbers(stored: Stored | Coded) -> Coded | torch.Tensor:
    """Numbers where there are no blocks, and for blocks that only de-quantised numbers can stand for."""
    if isinstance(stored, torch.Tensor):
        return stored
    if isinstance(stored, (Q4Blocks, Q8Blocks, GgmlBlocks)):
        return coded_ggml(stored) or stored.dequantise()
    return stored


@cache
def _byte_levels(levels: tuple[float, ...]) -> tuple[list[int], float]:
    """What levels are multiplied as where activations are bytes: whole numbers from -127 to 127, and the unit of which
    they are the nearest multiples. A power of two where all are multiples of it (1 for whole levels); else the unit
    that moves them least (root mean square): NF4's by up to 0.4% of the largest. 0 stays 0. The same on every machine:
    sums are exact."""
    for unit in (2.0**-power for power in range(8)):
        whole = [level / unit for level in levels]
        if all(level == round(level) and abs(level) <= _MOST for level in whole):
            return list(map(round, whole)), unit
    largest = max(abs(level) for level in levels)
    found: list[tuple[float, list[int], float]] = []
    for step in range(_UNITS):
        inverse = (_LEAST + (_MOST - _LEAST) * step / _UNITS) / largest
        codes = [round(level * inverse) for level in levels]
        unit = math.fsum(map(operator.mul, levels, codes)) / sum(code * code for code in codes)
        errors = (level - unit * code for level, code in zip(levels, codes, strict=True))
        found.append((math.fsum(error * error for error in errors), codes, unit))
    _, codes, unit = min(found)
    return codes, unit


def _lengthened(bias: torch.Tensor, rows: int) -> torch.Tensor:
    return torch.cat([bias, bias.new_zeros(rows - bias.numel())])
