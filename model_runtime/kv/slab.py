"""The KV slab: one conversation's keys and values, appended to in place and cropped by length.

A slab instead of `torch.cat`: concatenating copies the whole KV for every token. Appending here writes at the end of
room that is already there, and cropping moves a number. On a CPU a slab is a memory mapping of its own
(`slab_memory`), which the machine has back when it is freed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from model_runtime.kv.mapped_memory import CAN_GROW
from model_runtime.kv.slab_memory import SlabMemory


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one layer appends for a token: keys `(kv_heads, key_dim)` and values `(kv_heads, value_dim)`."""

    kv_heads: int
    key_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True)
class KVGeometry:
    """The shape of a model's KV. Slabs grow in steps of `step_tokens`, of a sixteenth of their length once that is
    more, so that growing copies little and less than 7% of a long slab is empty room."""

    layers: tuple[LayerShape, ...]
    dtype: torch.dtype
    device: torch.device
    step_tokens: int = 256

    @property
    def bytes_per_token(self) -> int:
        """`sum over layers of kv_heads * (key_dim + value_dim) * itemsize`."""
        return sum(s.kv_heads * (s.key_dim + s.value_dim) for s in self.layers) * self.dtype.itemsize

    def capacity_for(self, tokens: int) -> int:
        """Tokens of room a slab has when it must hold `tokens`. Monotone, since every step is a power of two times
        `step_tokens` or smaller, and the ranges between powers of two share their edges."""
        if tokens <= 0:
            return 0
        sixteenth = 1 << max(0, (tokens - 1).bit_length() - 5)
        step = max(self.step_tokens, sixteenth)
        return -(-tokens // step) * step

    def bytes_for(self, tokens: int) -> int:
        """The most bytes a slab of up to `tokens` tokens holds at any moment: while it grows, one layer's new keys or
        values stand beside the old ones."""
        widest = max((s.kv_heads * max(s.key_dim, s.value_dim) for s in self.layers), default=0)
        return self.capacity_for(tokens) * (self.bytes_per_token + widest * self.dtype.itemsize)


class KVSlab:
    """Keys and values of a prefix of one ledger. Owned by the engine thread; other threads only read the numbers.

    `keys[layer]` is `(kv_heads, capacity_tokens, key_dim)`, `values[layer]` alike; rows from `length_tokens` on are
    garbage. Head-major, so that the keys of one head lie together and all query heads of its group read them once.
    """

    __slots__ = ("__weakref__", "_capacity_tokens", "_geometry", "_memory", "keys", "token_ids", "values")

    def __init__(self, geometry: KVGeometry) -> None:
        self._geometry = geometry
        self._capacity_tokens = 0
        is_mapped = CAN_GROW and geometry.device.type == "cpu"
        self._memory = SlabMemory(geometry.layers, geometry.dtype) if is_mapped else None
        self.token_ids: list[int] = []
        self.keys: list[torch.Tensor] = [self._empty(s.kv_heads, 0, s.key_dim) for s in geometry.layers]
        self.values: list[torch.Tensor] = [self._empty(s.kv_heads, 0, s.value_dim) for s in geometry.layers]

    @property
    def length_tokens(self) -> int:
        """Tokens it holds now."""
        return len(self.token_ids)

    @property
    def capacity_tokens(self) -> int:
        """Tokens it has room for without growing."""
        return self._capacity_tokens

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self._geometry.device

    @property
    def allocated_bytes(self) -> int:
        """Bytes of its tensors, empty room included."""
        if self._memory is not None and self._memory.size_bytes:
            return self._memory.size_bytes  # any thread, while it grows too
        return sum(t.nbytes for t in self.keys) + sum(t.nbytes for t in self.values)

    def common_prefix_tokens(self, ledger: Sequence[int]) -> int:
        """How many tokens at the start of `ledger` this KV holds."""
        limit = min(self.length_tokens, len(ledger))
        if list(ledger[:limit]) == self.token_ids[:limit]:
            return limit
        return next(i for i in range(limit) if ledger[i] != self.token_ids[i])

    def ensure_room(self, tokens: int) -> None:
        """Grows to hold `tokens` tokens. Raises what torch raises when there is no memory; the slab is then unchanged
        or partly grown, and valid. Tensors taken out of `keys` and `values` before are not the slab's any more."""
        if tokens <= self._capacity_tokens:
            return
        capacity = self._geometry.capacity_for(tokens)
        if self._memory is not None:
            self._grow_in_place(self._memory, capacity)
        else:
            self._grow_by_layer(capacity)
        self._capacity_tokens = capacity

    def _grow_in_place(self, memory: SlabMemory, capacity: int) -> None:
        self.keys, self.values = [], []  # memory that tensors look into cannot grow
        try:
            memory.grow(capacity, self.length_tokens)
        finally:
            self.keys, self.values = memory.tensors()

    def _grow_by_layer(self, capacity: int) -> None:
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                new = self._empty(old.shape[0], capacity, old.shape[2])
                new[:, : self.length_tokens].copy_(old[:, : self.length_tokens])
                tensors[layer] = new

    def reserve(self, tokens: int) -> None:
        """An answer begins that may grow to `tokens` tokens. A slab grows as it goes."""

    def trim(self) -> None:
        """The answer has ended. A slab keeps its room for the next one."""

    def appended(self, token_ids: Sequence[int]) -> None:
        """Counts tokens whose keys and values a forward has written behind the last row in every layer."""
        self.token_ids.extend(token_ids)

    def crop(self, length_tokens: int) -> None:
        """Forgets everything from position `length_tokens` on. Frees nothing."""
        del self.token_ids[length_tokens:]

    def crop_to_numbers(self, length_tokens: int) -> None:
        """Like `crop`, and also forgets everything from the first row on that holds a NaN or an infinity."""
        self.crop(length_tokens)
        count = self.length_tokens
        good = torch.ones(count, dtype=torch.bool, device=self.device)
        for tensor in (*self.keys, *self.values):
            good &= torch.isfinite(tensor[:, :count]).all(dim=2).all(dim=0)
        self.crop(int(good.long().cumprod(0).sum()))

    def free(self) -> None:
        """Gives the memory back; the slab is empty and usable again."""
        self.token_ids.clear()
        self._capacity_tokens = 0
        self.keys = [t.new_empty((t.shape[0], 0, t.shape[2])) for t in self.keys]
        self.values = [t.new_empty((t.shape[0], 0, t.shape[2])) for t in self.values]
        if self._memory is not None:
            self._memory.free()

    def _empty(self, kv_heads: int, tokens: int, dim: int) -> torch.Tensor:
        return torch.empty((kv_heads, tokens, dim), dtype=self._geometry.dtype, device=self._geometry.device)


def own_slab(kv: object) -> KVSlab:
    """Raises `TypeError` for a KV of another kind of engine."""
    if not isinstance(kv, KVSlab):
        raise TypeError("this engine's KVs come from its new_kv()")
    return kv


def hold_zeros(kv: KVSlab, tokens: int, room_tokens: int) -> None:
    """Makes an empty KV hold rows of zeros, with room for `room_tokens`: something to measure behind."""
    kv.ensure_room(room_tokens)
    kv.appended([0] * tokens)
    for tensor in (*kv.keys, *kv.values):
        tensor.zero_()
