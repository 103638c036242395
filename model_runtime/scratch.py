"""One buffer that all layers of a model de-quantise into."""

from __future__ import annotations

import threading

import torch


class Scratch:
    """Buffers that every layer of one model de-quantises into; each thread has its own, since an engine's thread that
    was given up may still be at work beside its successor."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[int, torch.dtype], torch.Tensor] = {}

    def take(self, rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
        """`[rows, columns]` of that dtype, content undefined; the next call for this dtype gets the same memory."""
        count = rows * columns
        key = threading.get_ident(), dtype
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < count:
            with torch.inference_mode(False):  # a buffer made in inference mode could never be written outside it
                buffer = self._buffers[key] = torch.empty(count, dtype=dtype)
        return buffer[:count].view(rows, columns)

    def clear(self) -> None:
        """Frees the buffers."""
        self._buffers.clear()
