"""The memory of one slab on a CPU: a mapping that grows in place and holds the rows of every layer.

The rows of consecutive heads lie `capacity_tokens` rows apart. After the mapping has grown, they are moved to their new
distance from the last head to the first, so that no row is overwritten before it is moved: growing needs no second
copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from model_runtime.kv.geometry import LayerShape
from model_runtime.kv.mapped_memory import MappedMemory


class SlabMemory:
    """Keys and values layer by layer, `(kv_heads, capacity_tokens, dim)` each. Engine thread only."""

    __slots__ = ("_capacity_tokens", "_dtype", "_mapping", "_shapes")

    def __init__(self, layers: Sequence[LayerShape], dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._shapes = [(s.kv_heads, dim) for s in layers for dim in (s.key_dim, s.value_dim)]
        self._mapping: MappedMemory | None = None
        self._capacity_tokens = 0

    def grow(self, capacity_tokens: int, length_tokens: int) -> None:
        """Grows to `capacity_tokens` and keeps the first `length_tokens` rows. If tensors still view the mapping, the
        rows are copied into a new one. Raises `torch.OutOfMemoryError`; then nothing has changed."""
        size_bytes = self._row_bytes * capacity_tokens
        if self._mapping is None:
            self._mapping = MappedMemory(size_bytes)
            self._capacity_tokens = capacity_tokens
            return
        try:
            self._mapping.grow(size_bytes)
        except BufferError:
            self._copy(MappedMemory(size_bytes), capacity_tokens, length_tokens)
            return
        self._spread(self._mapping, capacity_tokens, length_tokens)
        self._capacity_tokens = capacity_tokens

    @property
    def size_bytes(self) -> int:
        """The memory it takes once every page was written to. Any thread."""
        return self._row_bytes * self._capacity_tokens

    def tensors(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Keys and values of every layer."""
        flat = torch.empty(0, dtype=torch.uint8) if self._mapping is None else self._mapping.tensor()
        views: list[torch.Tensor] = []
        start = 0
        for heads, dim in self._shapes:
            end = start + heads * dim * self._dtype.itemsize * self._capacity_tokens
            views.append(flat[start:end].view(self._dtype).view(heads, self._capacity_tokens, dim))
            start = end
        return views[::2], views[1::2]

    def free(self) -> None:
        """Releases the mapping, which is freed once no tensor views it."""
        self._mapping, self._capacity_tokens = None, 0

    @property
    def _row_bytes(self) -> int:
        return sum(heads * dim for heads, dim in self._shapes) * self._dtype.itemsize

    def _copy(self, fresh: MappedMemory, capacity_tokens: int, length_tokens: int) -> None:
        """Copies the rows into another mapping, which replaces the current one."""
        before = [tensor for tensors in self.tensors() for tensor in tensors]
        self._mapping, self._capacity_tokens = fresh, capacity_tokens
        after = [tensor for tensors in self.tensors() for tensor in tensors]
        for new, old in zip(after, before, strict=True):
            new[:, :length_tokens].copy_(old[:, :length_tokens])

    def _spread(self, mapping: MappedMemory, capacity_tokens: int, length_tokens: int) -> None:
        """Moves every head's rows from their place under the old capacity to their place under the new one."""
        before = self._row_bytes * self._capacity_tokens
        after = self._row_bytes * capacity_tokens
        for heads, dim in reversed(self._shapes):
            row_bytes = dim * self._dtype.itemsize
            blocks = []
            for _ in range(heads):
                before -= row_bytes * self._capacity_tokens
                after -= row_bytes * capacity_tokens
                blocks.append((before, after))
            mapping.move(blocks, row_bytes * length_tokens)
