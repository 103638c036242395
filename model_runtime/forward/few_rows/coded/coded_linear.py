"""A linear layer whose matrix stays at the file's bits on its device."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from model_runtime.forward.few_rows.coded.operations import CodedOperations
from model_runtime.forward.few_rows.coded.planes import CodedPlanes
from model_runtime.weights.native_matrix import stand_in

MOST_ROWS = 64  # of x that the kernel for few rows multiplies
SCRATCH_BYTES = 64 << 20  # of numbers that are de-quantised at a time for more


class CodedLinear(nn.Module):
    """`nn.Linear` on `CodedPlanes`: `[.., K]` to `[.., N]` in the dtype of its input, float32 inside for up to
    `MOST_ROWS` rows. More rows de-quantise some rows of the matrix at a time and use torch's product. Engine thread."""

    def __init__(self, planes: CodedPlanes, bias: torch.Tensor | None, operations: CodedOperations) -> None:
        """`bias` float32 `[N]` on the planes' device."""
        super().__init__()
        self.planes: CodedPlanes | None = planes
        self.in_features, self.out_features = planes.columns, planes.rows
        self.hidden_bytes = planes.nbytes + (0 if bias is None else bias.nbytes)
        self._bias, self._operations = bias, operations
        self._stand_in = stand_in(planes.rows, planes.columns, planes.tensors["codes"].device)

    @property
    def weight(self) -> torch.Tensor:
        """See `stand_in`; on the layer's device."""
        return self._stand_in

    @property
    def bias(self) -> torch.Tensor | None:
        """float32 `[N]`."""
        return self._bias

    def release(self) -> None:
        """Frees the matrix; the layer cannot be used afterwards."""
        self.planes, self._bias, self.hidden_bytes = None, None, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same leading dimensions, `out_features` last."""
        if self.planes is None:
            raise RuntimeError("this model was unloaded")
        rows = x.reshape(-1, self.in_features)
        if self.planes.order is not None:
            rows = rows.index_select(1, self.planes.order)
        few = 0 < rows.shape[0] <= MOST_ROWS
        y = self._operations.multiply(self.planes, rows, self._bias) if few else self._in_blocks(self.planes, rows)
        return y.view(*x.shape[:-1], self.out_features)

    def _in_blocks(self, planes: CodedPlanes, x: torch.Tensor) -> torch.Tensor:
        y = x.new_empty((x.shape[0], planes.rows))
        step = max(1, SCRATCH_BYTES // (planes.columns * x.itemsize))
        for start in range(0, planes.rows, step):
            end = min(start + step, planes.rows)
            weights = self._operations.dequantise(planes, start, end, x.dtype)
            bias = None if self._bias is None else self._bias[start:end].to(x.dtype)
            y[:, start:end] = functional.linear(x, weights, bias)
        return y

    def extra_repr(self) -> str:
        kind = "" if self.planes is None else f", {self.planes.grid.kind.name}"
        return f"in_features={self.in_features}, out_features={self.out_features}{kind}"
