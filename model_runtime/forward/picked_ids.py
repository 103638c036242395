"""Token ids that were chosen on the device and are being copied to the host."""

from __future__ import annotations

from functools import cached_property

import torch


class PickedIds:
    """`ids` is int64 `(n,)` on the device; all are valid ids, even for rows whose logits `are_numbers (rows,)` marks as
    invalid. The copy starts at once and does not wait for later work of the device, so that the next step can be
    started before the host waits for the ids. Engine thread."""

    def __init__(self, ids: torch.Tensor, are_numbers: torch.Tensor | None = None) -> None:
        self.ids = ids
        both = ids if are_numbers is None else torch.cat([ids, are_numbers.to(ids.dtype)])
        self._copy = both
        self._copied = None
        if ids.device.type == "cuda":
            self._copy = torch.empty(both.shape, dtype=both.dtype, pin_memory=True)
            self._copy.copy_(both, non_blocking=True)
            self._copied = torch.cuda.current_stream(ids.device).record_event()

    @cached_property
    def on_host(self) -> list[int]:
        """The ids; the first call waits for them."""
        return self._numbers[: len(self.ids)]

    @property
    def are_numbers(self) -> list[bool]:
        """Whether each row of logits is free of NaN and infinity."""
        return [bool(flag) for flag in self._numbers[len(self.ids) :]]

    @cached_property
    def _numbers(self) -> list[int]:
        if self._copied is not None:
            self._copied.synchronize()
        return [int(number) for number in self._copy.tolist()]
