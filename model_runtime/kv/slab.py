"""The KV slab: one conversation's keys and values, appended to in place and cropped by length.

`torch.cat` would copy the whole KV for every token. A slab appends into memory that is already allocated, and cropping
changes a number. On a CPU a slab is a memory mapping of its own (`slab_memory`), which returns to the system when the
slab is freed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from model_runtime.kv.geometry import KVGeometry
from model_runtime.kv.mapped_memory import CAN_GROW
from model_runtime.kv.slab_memory import SlabMemory


class KVSlab:
    """Keys and values of a prefix of one ledger. Owned by the engine thread; other threads only read the counters.

    `keys[layer]` is `(kv_heads, capacity_tokens, key_dim)`, `values[layer]` likewise; rows from `length_tokens` on are
    garbage. Head-major, so that the keys of a head are contiguous and all query heads of its group read them once.
    `is_long_rope`: its rows have the long frequencies of long RoPE.
    """

    __slots__ = (
        "__weakref__",
        "_capacity_tokens",
        "_geometry",
        "_memory",
        "is_long_rope",
        "keys",
        "token_ids",
        "values",
    )

    def __init__(self, geometry: KVGeometry) -> None:
        self._geometry = geometry
        self._capacity_tokens = 0
        is_mapped = CAN_GROW and geometry.device.type == "cpu"
        self._memory = SlabMemory(geometry.layers, geometry.dtype) if is_mapped else None
        self.token_ids: list[int] = []
        self.is_long_rope = False
        self.keys: list[torch.Tensor] = [self._empty(s.kv_heads, 0, s.key_dim) for s in geometry.layers]
        self.values: list[torch.Tensor] = [self._empty(s.kv_heads, 0, s.value_dim) for s in geometry.layers]

    @property
    def length_tokens(self) -> int:
        """How many tokens it holds now."""
        return len(self.token_ids)

    @property
    def capacity_tokens(self) -> int:
        """How many tokens it can hold without growing."""
        return self._capacity_tokens

    @property
    def device(self) -> torch.device:
        """The device of its tensors."""
        return self._geometry.device

    @property
    def allocated_bytes(self) -> int:
        """Bytes of its tensors, unused capacity included."""
        if self._memory is not None and self._memory.size_bytes:
            return self._memory.size_bytes  # safe on any thread, also while the slab grows
        return sum(t.nbytes for t in self.keys) + sum(t.nbytes for t in self.values)

    def common_prefix_tokens(self, ledger: Sequence[int]) -> int:
        """The length of the longest common prefix of `ledger` and this KV."""
        limit = min(self.length_tokens, len(ledger))
        if list(ledger[:limit]) == self.token_ids[:limit]:
            return limit
        return next(i for i in range(limit) if ledger[i] != self.token_ids[i])

    def use_rope_for(self, tokens: int) -> bool:
        """Prepares for a ledger of `tokens` tokens: rows of the other set of rotary frequencies are dropped. Whether
        there were any."""
        short_tokens = self._geometry.short_rope_tokens
        return self.use_rope(is_long=short_tokens is not None and tokens > short_tokens)

    def use_rope(self, is_long: bool) -> bool:
        """Like `use_rope_for`, for the long or the short frequencies."""
        drops = is_long is not self.is_long_rope and self.length_tokens > 0
        if drops:
            self.crop(0)
        self.is_long_rope = is_long
        return drops

    def check_rope(self, more_tokens: int) -> None:
        """Called before that many rows are appended. An empty KV takes the frequencies of that length. Raises
        `ValueError` if its rows have the short frequencies and may not become this many."""
        if self.holds_with_rope(more_tokens):
            return
        if self.length_tokens:
            raise ValueError(
                f"{self.length_tokens} rows with short rotary frequencies cannot become {more_tokens} more than that"
            )
        self.is_long_rope = True

    def holds_with_rope(self, more_tokens: int) -> bool:
        """Whether that many rows may be appended without a change of its rotary frequencies."""
        room_tokens = self.short_room_tokens
        return room_tokens is None or more_tokens <= room_tokens

    @property
    def short_room_tokens(self) -> int | None:
        """How many rows it can still append before it must be read again with other frequencies. None: no limit."""
        short_tokens = self._geometry.short_rope_tokens
        return None if short_tokens is None or self.is_long_rope else short_tokens - self.length_tokens

    def ensure_room(self, tokens: int) -> None:
        """Grows to hold `tokens` tokens. Raises what torch raises when there is no memory; the slab is then unchanged
        or partly grown, and valid. Tensors taken from `keys` and `values` earlier no longer belong to the slab."""
        if tokens <= self._capacity_tokens:
            return
        capacity = self._geometry.capacity_for(tokens)
        if self._memory is not None:
            self._grow_in_place(self._memory, capacity)
        else:
            self._grow_by_layer(capacity)
        self._capacity_tokens = capacity

    def _grow_in_place(self, memory: SlabMemory, capacity: int) -> None:
        self.keys, self.values = [], []  # a mapping cannot grow while tensors view it
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
        """Prepares for an answer of up to `tokens` tokens. Does nothing here: a slab grows as tokens are appended."""

    def trim(self) -> None:
        """Called when an answer has ended. Does nothing here: a slab keeps its capacity for the next answer."""

    def appended(self, token_ids: Sequence[int]) -> None:
        """Counts tokens whose keys and values were written after the last row in every layer."""
        self.token_ids.extend(token_ids)

    def crop(self, length_tokens: int) -> None:
        """Drops everything from position `length_tokens` on. Frees no memory."""
        del self.token_ids[length_tokens:]

    def crop_to_numbers(self, length_tokens: int) -> None:
        """Like `crop`, and also drops everything from the first row with NaN or infinity on."""
        self.crop(length_tokens)
        count = self.length_tokens
        good = torch.ones(count, dtype=torch.bool, device=self.device)
        for tensor in (*self.keys, *self.values):
            good &= torch.isfinite(tensor[:, :count]).all(dim=2).all(dim=0)
        self.crop(int(good.long().cumprod(0).sum()))

    def free(self) -> None:
        """Frees the memory. The slab is then empty and can be used again."""
        self.token_ids.clear()
        self._capacity_tokens = 0
        self.keys = [t.new_empty((t.shape[0], 0, t.shape[2])) for t in self.keys]
        self.values = [t.new_empty((t.shape[0], 0, t.shape[2])) for t in self.values]
        if self._memory is not None:
            self._memory.free()

    def _empty(self, kv_heads: int, tokens: int, dim: int) -> torch.Tensor:
        return torch.empty((kv_heads, tokens, dim), dtype=self._geometry.dtype, device=self._geometry.device)


def own_slab(kv: object) -> KVSlab:
    """The same KV with its own type. Raises `TypeError` for a KV of another kind of engine."""
    if not isinstance(kv, KVSlab):
        raise TypeError("this engine's KVs come from its new_kv()")
    return kv


def hold_zeros(kv: KVSlab, tokens: int, room_tokens: int) -> None:
    """Fills an empty KV with `tokens` rows of zeros and room for `room_tokens`: a history to measure with."""
    kv.use_rope_for(room_tokens)
    kv.ensure_room(room_tokens)
    kv.appended([0] * tokens)
    for tensor in (*kv.keys, *kv.values):
        tensor.zero_()


@torch.inference_mode()  # the slabs' tensors are the forward's, which nothing else may write to
def copy_beginning(source: KVSlab, target: KVSlab, ids: Sequence[int], least_tokens: int) -> tuple[int, int]:
    """Copies rows on the device so that `target` holds as long a prefix of `ids` as `source`, if that is at least
    `least_tokens` more than it holds already. Conversations that begin alike are thus read once.

    Returns the copied range (start, end), or (0, 0) if nothing was copied and `target` is unchanged. Engine thread.
    Raises what torch raises when there is no memory; `target` then holds a valid prefix of `ids`.
    """
    end = source.common_prefix_tokens(ids)
    start = target.common_prefix_tokens(ids[:end]) if target.is_long_rope is source.is_long_rope else 0
    if source is target or end - start < least_tokens:
        return 0, 0
    target.use_rope(source.is_long_rope)
    target.crop(start)
    target.ensure_room(end)
    for mine, theirs in zip((*target.keys, *target.values), (*source.keys, *source.values), strict=True):
        mine[:, start:end].copy_(theirs[:, start:end])
    target.appended(ids[start:end])
    return start, end
