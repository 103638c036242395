"""What a layer's attention computes beyond the softmax of scaled products: one record for every kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, eq=False)
class AttentionOptions:
    """Each option is computed by a kernel or refused by its name; None means that the layer does not use it.

    A query at position p and a key at position k have the score `scale * (query . key)`; `scale` is 1 / sqrt(key width)
    if None. Then, in this order:

    - `softcap`: the score becomes `softcap * tanh(score / softcap)` (Gemma 2).
    - `slopes` float32 `(heads,)`: `slope * (k - p)` is added (ALiBi, Press et al. 2021).
    - `key_biases` float32 `(heads, positions)`: the one of position k is added (Falcon's rounded ALiBi).
    - `window`: only keys with `p - window < k <= p` are seen. It counts the token itself.
    - `chunk`: only keys with `k // chunk == p // chunk` are seen (Llama 4).
    - `sinks (heads,)`: one more score in the softmax's sum, whose value is 0 (gpt-oss; Xiao et al. 2023).
    """

    scale: float | None = None
    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None
    slopes: torch.Tensor | None = None
    key_biases: torch.Tensor | None = None

    @property
    def used(self) -> frozenset[str]:
        """The names of the options in use, the scale apart, which every kernel computes."""
        names = ("window", "chunk", "softcap", "sinks", "slopes", "key_biases")
        return frozenset(name for name in names if getattr(self, name) is not None)

    @property
    def changes_scores(self) -> bool:
        """Whether it does more than hide keys."""
        return not self.used <= {"window", "chunk"}

    def first_key(self, position: int) -> int:
        """The first key that the query at `position` sees."""
        by_window = 0 if self.window is None else position + 1 - self.window
        by_chunk = 0 if self.chunk is None else position // self.chunk * self.chunk
        return max(0, by_window, by_chunk)


PLAIN = AttentionOptions()


@dataclass(frozen=True, slots=True)
class HiddenKeys:
    """What a layer's causal mask hides besides later keys: `window` and `chunk` as in `AttentionOptions`."""

    window: int | None = None
    chunk: int | None = None

    def sees(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Broadcasts int64 positions to bool."""
        seen = keys <= queries
        if self.window is not None:
            seen = seen & (keys > queries - self.window)
        if self.chunk is not None:
            seen = seen & (keys // self.chunk == queries // self.chunk)
        return seen
