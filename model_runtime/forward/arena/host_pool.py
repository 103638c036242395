"""Host memory for rows in transfer: allocated once, and page-locked with CUDA, so that copies overlap with compute."""

from __future__ import annotations

import logging
import threading
import weakref
from collections import deque
from typing import Any

import numpy as np
import torch

from model_runtime.forward.arena.spans import SpanAllocator

logger = logging.getLogger(__name__)

_ALIGN_BYTES = 4096


class _Block(np.ndarray):
    """A block of the pool. Tensors made from it keep it alive; it returns to the pool after the last one."""


class HostPool:
    """Any thread. Page-locks with `cudaHostRegister`, because torch's pinned allocator rounds up to a power of two: a
    pool of 20 GiB would take 32."""

    def __init__(self, capacity_bytes: int, device: torch.device) -> None:
        self.capacity_bytes = capacity_bytes // _ALIGN_BYTES * _ALIGN_BYTES
        self._memory = torch.empty(self.capacity_bytes, dtype=torch.uint8)
        self._spans = SpanAllocator(self.capacity_bytes // _ALIGN_BYTES)
        self._lock = threading.Lock()
        self._returned: deque[tuple[int, int]] = deque()  # finalisers may run anywhere, so they take no lock
        self.is_pinned = device.type == "cuda" and self._register()

    @property
    def used_bytes(self) -> int:
        """How many bytes are in use."""
        with self._lock:
            self._take_back()
            return self.capacity_bytes - self._spans.free_rows * _ALIGN_BYTES

    def take(self, size_bytes: int) -> torch.Tensor:
        """Flat uint8 memory of that size, which returns to the pool when it is no longer referenced. If the pool is
        full, ordinary memory that is not page-locked: the copy is then slower and blocks the host, and is logged."""
        rows = -(-size_bytes // _ALIGN_BYTES)
        with self._lock:
            self._take_back()
            start = self._spans.take(rows)
        if start is None:
            logger.info("host_pool_full asked_bytes=%d used_bytes=%d", size_bytes, self.used_bytes)
            return torch.empty(size_bytes, dtype=torch.uint8)
        begin = start * _ALIGN_BYTES
        block = self._memory.numpy()[begin : begin + size_bytes].view(_Block)
        weakref.finalize(block, self._returned.append, (start, rows)).atexit = False
        return torch.from_numpy(block)

    def close(self) -> None:
        """Unlocks the pages. The memory is freed with its last user."""
        if self.is_pinned:
            torch.cuda.synchronize()
            _cudart().cudaHostUnregister(self._memory.data_ptr())
            self.is_pinned = False

    def _register(self) -> bool:
        if not self.capacity_bytes:
            return False
        code = int(_cudart().cudaHostRegister(self._memory.data_ptr(), self.capacity_bytes, 0))
        if code:
            logger.warning("host memory is not page-locked: cudaHostRegister answered %d", code)
        return code == 0

    def _take_back(self) -> None:
        while self._returned:
            self._spans.give_back(*self._returned.popleft())


def _cudart() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
