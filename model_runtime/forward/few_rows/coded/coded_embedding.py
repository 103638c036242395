"""A table of embeddings whose rows stay at the file's bits on its device."""

from __future__ import annotations

import torch
from torch import nn

from model_runtime.forward.few_rows.coded.operations import CodedOperations
from model_runtime.forward.few_rows.coded.planes import CodedPlanes
from model_runtime.weights.native_matrix import stand_in


class CodedEmbedding(nn.Module):
    """`nn.Embedding` on `CodedPlanes`, which may also be the head's: ids `[..]` to `[.., K]` in `dtype`. Only the rows
    that are looked up are de-quantised. `factor` multiplies them (Gemma), rounded to `dtype` as in its own layers.
    Engine thread."""

    def __init__(
        self,
        planes: CodedPlanes,
        operations: CodedOperations,
        dtype: torch.dtype,
        *,
        is_shared: bool,
        factor: float | None = None,
    ) -> None:
        super().__init__()
        self.planes: CodedPlanes | None = planes
        self.num_embeddings, self.embedding_dim = planes.rows, planes.columns
        self.hidden_bytes = 0 if is_shared else planes.nbytes
        self._operations, self._dtype = operations, dtype
        device = planes.tensors["codes"].device
        self._factor = None if factor is None else torch.tensor(factor, dtype=dtype, device=device)
        self._stand_in = stand_in(planes.rows, planes.columns, device, dtype)

    @property
    def weight(self) -> torch.Tensor:
        """See `stand_in`; on the layer's device."""
        return self._stand_in

    def release(self) -> None:
        """Frees the table; the layer cannot be used afterwards."""
        self.planes, self.hidden_bytes = None, 0

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """`[.., K]`."""
        if self.planes is None:
            raise RuntimeError("this model was unloaded")
        taken = self.planes.taken(token_ids.reshape(-1))
        rows = self._operations.dequantise(taken, 0, taken.rows, self._dtype)
        if self._factor is not None:
            rows = rows * self._factor
        return rows.view(*token_ids.shape, self.embedding_dim)
