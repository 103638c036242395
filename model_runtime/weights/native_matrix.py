"""Weights in the layout of the native CPU kernels: tiles as wide as a register, at the bits they were shipped with."""

from __future__ import annotations

import ctypes
from enum import IntEnum

import torch
from torch import nn

from model_runtime.native.native_library import MatrixStruct
from model_runtime.weights.q4_blocks import GROUP, Q4Blocks, Q8Blocks
from model_runtime.weights.stored_weights import Packable


class Kind(IntEnum):
    """How a matrix is stored; the same numbers as in matrix.h."""

    Q4 = 0
    Q8 = 1
    HALF = 2
    SINGLE = 3


class NativeMatrix:
    """A read-only weight matrix `[N, K]`, K a multiple of 32.

    Its values are the file's own: 4-bit and 8-bit blocks keep their codes and scales; other numbers are stored as
    float16 if that is lossless, else as float32.
    """

    __slots__ = ("columns", "kernels", "kind", "rows", "struct", "tensors")

    def __init__(self, stored: Packable, bias: torch.Tensor | None, kernels: ctypes.CDLL) -> None:
        self.kernels = kernels
        self.kind, tensors = _tiles(stored, kernels.keepwarm_lanes())
        self.rows, self.columns = stored.codes.shape if isinstance(stored, Q8Blocks) else stored.shape
        if self.columns % GROUP:
            raise ValueError(f"a native matrix needs a multiple of {GROUP} columns, not {self.columns}")
        if bias is not None and tuple(bias.shape) != (self.rows,):
            raise ValueError(f"a bias of {list(bias.shape)} numbers does not belong to {self.rows} outputs")
        if isinstance(stored, (Q4Blocks, Q8Blocks)):
            _check_scales(stored, self.rows, self.columns)
        codes, scale, minimum = (*tensors, None, None)[:3]
        padded_bias = None if bias is None else _padded(bias.float(), kernels.keepwarm_lanes())
        self.tensors = [t for t in (*tensors, padded_bias) if t is not None]
        self.struct = MatrixStruct(
            *(None if t is None else t.data_ptr() for t in (codes, scale, minimum, padded_bias)),
            int(self.kind),
            self.rows,
            self.columns,
        )

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
        x = x.contiguous()
        self.kernels.keepwarm_multiply(
            ctypes.byref(self.struct), x.shape[0], x.data_ptr(), y.data_ptr(), torch.get_num_threads()
        )
        return y[:, : self.rows]


class NativeLinear(nn.Module):
    """`nn.Linear` on a `NativeMatrix`: `[.., K]` to float32 `[.., N]`."""

    def __init__(self, matrix: NativeMatrix) -> None:
        super().__init__()
        self.matrix: NativeMatrix | None = matrix
        self.in_features, self.out_features = matrix.columns, matrix.rows
        self.hidden_bytes = matrix.nbytes

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


def _check_scales(stored: Q4Blocks | Q8Blocks, rows: int, columns: int) -> None:
    scales = (stored.scale, stored.minimum) if isinstance(stored, Q4Blocks) else (stored.scale,)
    if any(tuple(scale.shape) != (rows, columns // GROUP) for scale in scales):
        raise ValueError(f"a matrix of {rows} x {columns} has other scales than its blocks need")


def padded_rows(rows: int, kernels: ctypes.CDLL) -> int:
    """The width that the kernels write for `rows` outputs: a whole number of tile pairs."""
    pair = 2 * int(kernels.keepwarm_lanes())
    return -(-rows // pair) * pair


def _tiles(stored: Packable, lanes: int) -> tuple[Kind, tuple[torch.Tensor, ...]]:
    """The matrix in the layout of matrix.h: codes, scale and minimum, as far as its kind has them."""
    if isinstance(stored, Q4Blocks):
        nibbles = _padded(stored.codes(), lanes).view(-1, lanes, stored.shape[1] // 8, 8)
        words = torch.zeros(nibbles.shape[:3], dtype=torch.int32)
        for place in range(8):
            words |= nibbles[..., place] << (4 * place)
        return Kind.Q4, (words.transpose(1, 2).contiguous(), _tiled(stored.scale, lanes), _tiled(stored.minimum, lanes))
    if isinstance(stored, Q8Blocks):
        codes = _padded(stored.codes, lanes).view(-1, lanes, stored.codes.shape[1] // 4, 4)
        return Kind.Q8, (codes.transpose(1, 2).contiguous(), _tiled(stored.scale, lanes))
    halves = stored.to(torch.float16)
    if torch.equal(halves.float(), stored.float()):
        return Kind.HALF, (_tiled(halves, lanes),)
    return Kind.SINGLE, (_tiled(stored.float(), lanes),)


def _tiled(rows: torch.Tensor, lanes: int) -> torch.Tensor:
    """`[N, C]` to `[N/lanes, C, lanes]`, N padded to a pair of tiles."""
    padded = _padded(rows, lanes)
    return padded.view(padded.shape[0] // lanes, lanes, -1).transpose(1, 2).contiguous()


def _padded(rows: torch.Tensor, lanes: int) -> torch.Tensor:
    missing = -rows.shape[0] % (2 * lanes)
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows
