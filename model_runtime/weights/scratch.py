"""One buffer that all layers of a model de-quantise into."""

from __future__ import annotations

import threading

import torch


class Scratch:
    """Buffers that every layer of one model de-quantises into; each thread has its own, since an engine's thread that
    was given up may still be at work beside its successor. They go with their thread."""

    def __init__(self) -> None:
        self._own = threading.local()

    def take(self, rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
        """`[rows, columns]` of that dtype, content undefined; the next call for this dtype gets the same memory."""
        count = rows * columns
        buffers: dict[torch.dtype, torch.Tensor] = self._own.__dict__.setdefault("buffers", {})
        buffer = buffers.get(dtype)
        if buffer is None or buffer.numel() < count:
            buffers.pop(dtype, None)  # before the larger one is taken
            with torch.inference_mode(False):  # a buffer made in inference mode could never be written outside it
                buffer = buffers[dtype] = torch.empty(count, dtype=dtype)
        return buffer[:count].view(rows, columns)

    def clear(self) -> None:
        """Frees the buffers of all threads."""
        self._own = threading.local()
