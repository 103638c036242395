"""The shape of a model's KV: what each layer keeps per token, and how large a slab is."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one layer appends per token: keys `(kv_heads, key_dim)` and values `(kv_heads, value_dim)`."""

    kv_heads: int
    key_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True)
class KVGeometry:
    """The shape of a model's KV. Slabs grow in steps of `step_tokens`, or of a sixteenth of their length once that is
    more, so that growing copies little and less than 7% of a long slab is unused. A KV of more than `short_rope_tokens`
    tokens has the long frequencies of long RoPE; None without long RoPE."""

    layers: tuple[LayerShape, ...]
    dtype: torch.dtype
    device: torch.device
    step_tokens: int = 256
    short_rope_tokens: int | None = None

    @property
    def bytes_per_token(self) -> int:
        """`sum over layers of kv_heads * (key_dim + value_dim) * itemsize`."""
        return sum(s.kv_heads * (s.key_dim + s.value_dim) for s in self.layers) * self.dtype.itemsize

    def capacity_for(self, tokens: int) -> int:
        """The capacity in tokens of a slab that must hold `tokens`. Monotone, since every step is a power of two times
        `step_tokens` or smaller, and the ranges between powers of two share their edges."""
        if tokens <= 0:
            return 0
        sixteenth = 1 << max(0, (tokens - 1).bit_length() - 5)
        step = max(self.step_tokens, sixteenth)
        return -(-tokens // step) * step

    def bytes_for(self, tokens: int) -> int:
        """The most bytes that a slab of up to `tokens` tokens holds at any moment: while it grows, one layer's new keys
        or values exist beside the old ones."""
        widest = max((s.kv_heads * max(s.key_dim, s.value_dim) for s in self.layers), default=0)
        return self.capacity_for(tokens) * (self.bytes_per_token + widest * self.dtype.itemsize)
