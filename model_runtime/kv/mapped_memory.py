"""Host memory in a mapping of its own: it returns to the system as soon as its last reference is gone.

The C library's allocator keeps most of the memory that is freed: tensors of 100 kB, freed between blocks that live
longer, left 260 MB of holes after 120 requests on a budget of 24 MiB.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
from collections.abc import Iterator

import numpy as np
import torch

CAN_GROW = sys.platform == "linux"  # elsewhere a mapping cannot be made larger in place
_SMALL_BYTES = 64 * 1024  # a mapping costs whole pages and a system call: torch's allocator serves smaller blocks
_PRIVATE = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)


class MappedMemory:
    """An anonymous mapping of `size_bytes` zeros. Pages take memory only once they are written to."""

    def __init__(self, size_bytes: int) -> None:
        """Raises `torch.OutOfMemoryError`."""
        with _out_of_memory(size_bytes):
            self._mapping = mmap.mmap(-1, size_bytes, flags=_PRIVATE)

    def __len__(self) -> int:
        return len(self._mapping)

    def tensor(self) -> torch.Tensor:
        """The whole mapping as flat uint8. While any view of it is alive, the mapping stays and cannot grow."""
        with torch.inference_mode(False):  # a tensor made in inference mode could not be written to outside it
            # NumPy's array keeps the buffer exported while a tensor lives. torch.frombuffer releases it at once, and
            # the mapping could then move while the tensor still points at it.
            return torch.from_numpy(np.frombuffer(self._mapping, dtype=np.uint8))

    def grow(self, size_bytes: int) -> None:
        """Grows the mapping without copying: the kernel moves the pages. Raises `torch.OutOfMemoryError`, with nothing
        changed, or `BufferError` while a tensor views it."""
        with _out_of_memory(size_bytes):
            self._mapping.resize(size_bytes)

    def move(self, blocks: list[tuple[int, int]], block_bytes: int) -> None:
        """Moves blocks of `block_bytes` bytes, given as (source offset, target offset), in order. They may overlap."""
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))
        for source, target in blocks:
            ctypes.memmove(start + target, start + source, block_bytes)


def new_memory(size_bytes: int) -> torch.Tensor:
    """Flat uint8 memory of that size with undefined content. Raises `torch.OutOfMemoryError`."""
    if not CAN_GROW or size_bytes < _SMALL_BYTES:
        return torch.empty(size_bytes, dtype=torch.uint8)
    return MappedMemory(size_bytes).tensor()


@contextlib.contextmanager
def _out_of_memory(size_bytes: int) -> Iterator[None]:
    """Turns the kernel's refusal of memory into torch's error."""
    try:
        yield
    except (OSError, MemoryError) as error:
        raise torch.OutOfMemoryError(f"out of memory: {size_bytes:,} bytes were refused") from error
