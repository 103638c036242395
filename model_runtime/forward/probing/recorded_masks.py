"""Reads off which keys a model's masks hide, from the functions of which transformers would build them.

A window or a chunk that a layer does not pass to its attention is only in its mask, and the packed attention gets none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from model_runtime.forward.attention_options import HiddenKeys

MaskFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

_FARTHEST = 1 << 22


class UnknownMask(Exception):
    """A mask that is neither causal, nor a sliding window, nor chunks."""


class _OfTextsAlone(TorchFunctionMode):
    """Meanwhile a mask function can look up any position in a table of the two tokens of a recording (Gemma 4 has one
    of the pictures that tokens belong to), if both have the same entry: texts alone have it everywhere. Raises
    `UnknownMask` for any other table, which a GPU would read beyond its end."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__getitem__ and isinstance(args[1], tuple):
            table, places = args
            if any(isinstance(place, torch.Tensor) and place.dtype != torch.bool for place in places):
                if not bool((table == table.reshape(-1)[0]).all()):
                    raise UnknownMask
                return func(table, tuple(map(_within, places, table.shape)))
        return func(*args, **(kwargs or {}))


def _within(place: Any, size: int) -> Any:
    return place.clamp(max=size - 1) if isinstance(place, torch.Tensor) else place


@dataclass(slots=True)
class RecordedMasks:
    """The masks of one forward: small real masks for the layers, and what each of them hides."""

    _known: list[tuple[torch.Tensor, HiddenKeys | None]] = field(default_factory=list)

    def add(self, mask: torch.Tensor, function: MaskFunction, local_size: int | None) -> torch.Tensor:
        """Remembers what `mask` hides, which `function` computes for any positions, and returns it."""
        try:
            hidden: HiddenKeys | None = hidden_by(function, local_size, mask.device)
        except (UnknownMask, RuntimeError, IndexError, TypeError):
            hidden = None
        self._known.append((mask, hidden))
        return mask

    def hidden(self, mask: torch.Tensor | None) -> HiddenKeys | None:
        """What the mask hides that a layer passes to its attention; None without a mask. Raises `UnknownMask` for one
        that was not made here, such as a mask that a layer computes from its input."""
        if mask is None:
            return None
        for known, hidden in self._known:
            if known.untyped_storage().data_ptr() == mask.untyped_storage().data_ptr() and hidden is not None:
                return hidden
        raise UnknownMask


def hidden_by(function: MaskFunction, local_size: int | None, device: torch.device) -> HiddenKeys:
    """What a mask function hides. `local_size` is its window or chunk as transformers states it, if any. Raises
    `UnknownMask` if it is neither at any of the positions tried."""
    edges = [size * n + shift for size in (local_size or 8,) for n in (1, 2, 3, 7) for shift in (-2, -1, 0, 1)]
    near = [*range(12), *(1 << n for n in range(4, 23)), *(3 << n for n in range(3, 21)), *edges]
    tried = sorted({p for p in near if 0 <= p <= max(_FARTHEST, 8 * (local_size or 0))})
    positions = torch.tensor(tried, device=device)
    zero = torch.zeros((1, 1), dtype=torch.int64, device=device)
    with _OfTextsAlone():
        found = function(zero, zero, positions[:, None], positions[None]).expand(len(positions), len(positions))
    candidates: list[HiddenKeys] = [
        HiddenKeys(),
        *((HiddenKeys(local_size), HiddenKeys(None, local_size)) if local_size else ()),
    ]
    for candidate in candidates:
        if bool((candidate.sees(positions[:, None], positions[None]) == found).all()):
            return candidate
    raise UnknownMask
