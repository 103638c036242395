"""Token ids that were chosen on the device, on their way to the host."""

from __future__ import annotations

from functools import cached_property

import torch


class Picks:
    """`ids` is int64 `(n,)` on the device. The copy begins at once and is behind nothing that is given to the device
    later, so that the next step may be started before anybody waits for it. Engine thread."""

    def __init__(self, ids: torch.Tensor) -> None:
        self.ids = ids
        self._copy = ids
        self._copied = None
        if ids.device.type == "cuda":
            self._copy = torch.empty(ids.shape, dtype=ids.dtype, pin_memory=True)
            self._copy.copy_(ids, non_blocking=True)
            self._copied = torch.cuda.current_stream(ids.device).record_event()

    @cached_property
    def on_host(self) -> list[int]:
        """The ids; the first call waits for them."""
        if self._copied is not None:
            self._copied.synchronize()
        return [int(token_id) for token_id in self._copy.tolist()]
