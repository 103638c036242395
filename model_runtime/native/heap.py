"""Limits how much freed memory the C library's allocator keeps, and makes it return memory to the system.

glibc opens an arena for nearly every thread, up to eight per processor, and keeps in each what was freed there. Other C
libraries are left alone. Imports no torch: the command line calls `limit` before anything else.
"""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
ARENAS = 4  # shared by all threads; the GIL keeps most of them from allocating at the same time
MMAP_BYTES = 4 * 1024**2  # larger blocks get mappings of their own; the logits of a step are smaller
TRIM_BYTES = 8 * 1024**2  # more free memory than this at the end of the heap is returned at once
_SETTINGS = (
    (_M_ARENA_MAX, ARENAS, "MALLOC_ARENA_MAX", "arena_max"),
    (_M_MMAP_THRESHOLD, MMAP_BYTES, "MALLOC_MMAP_THRESHOLD_", "mmap_threshold"),
    (_M_TRIM_THRESHOLD, TRIM_BYTES, "MALLOC_TRIM_THRESHOLD_", "trim_threshold"),
)


def limit() -> None:
    """Bounds what glibc keeps. Call before any thread is started. Settings from the environment take precedence."""
    mallopt = getattr(_c_library(), "mallopt", None)
    if mallopt is None:
        return
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    for parameter, value, variable, tunable in _SETTINGS:
        if variable not in os.environ and f"glibc.malloc.{tunable}=" not in tunables:
            mallopt(parameter, value)


def give_back() -> None:
    """Returns unused pages inside the heap to the system, which takes milliseconds. Any thread."""
    malloc_trim = getattr(_c_library(), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def _c_library() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None
