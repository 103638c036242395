"""Memory for the tiles of weight matrices: mappings that many of them share, on large pages where the system has them.

A step reads all weights once, in ten thousands of pages of 4 KiB: looking these up costs a part of the bandwidth. And
what lies between tiles in the C library's heap would leave holes there.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import sys
import threading
import weakref
from collections.abc import Callable

import numpy as np
import torch

SHARED_BYTES = 64 * 1024**2  # of a mapping that tiles share; what of it was never written takes no memory
_LARGEST_BYTES = 4 * 1024**2  # tiles that are larger get a mapping of their own
_LINE = 64
_PRIVATE = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
_LARGE_PAGES = getattr(mmap, "MADV_HUGEPAGE", None)


class TileMemory:
    """Hands out zeros. A mapping goes back to the system when its last tensor is gone. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shared: Callable[[], np.ndarray | None] = lambda: None  # a weak reference: the tensors hold it
        self._taken = 0

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A tensor of that shape, at the beginning of a cache line. Raises `MemoryError` or `OSError`."""
        size = math.prod(shape) * dtype.itemsize
        if size == 0 or sys.platform != "linux":
            return torch.zeros(shape, dtype=dtype)
        if size > _LARGEST_BYTES:
            return torch.from_numpy(_mapped(size)).view(dtype).view(shape)
        with self._lock:
            mapped, start = self._shared(), self._taken
            if mapped is None or start + size > SHARED_BYTES:
                mapped, start = _mapped(SHARED_BYTES), 0
                self._shared = weakref.ref(mapped)
            self._taken = start + -(-size // _LINE) * _LINE
        return torch.from_numpy(mapped[start : start + size]).view(dtype).view(shape)


def _mapped(size: int) -> np.ndarray:
    mapping = mmap.mmap(-1, size, flags=_PRIVATE)
    if _LARGE_PAGES is not None:
        with contextlib.suppress(OSError):  # a kernel without them
            mapping.madvise(_LARGE_PAGES)
    return np.frombuffer(mapping, dtype=np.uint8)  # keeps the mapping


TILES = TileMemory()
