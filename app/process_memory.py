"""What the process holds of the machine's memory, and what for.

`resident = program + weights + KV + other`. *Program* is what the process held when everything was imported and no
model was loaded: Python, torch, the page, their code and their data. *Other* is the rest, measured and not estimated:
what answers work with, connections, files on their way to the disk, and what the allocator keeps of what was freed.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from model_runtime.native import heap

if TYPE_CHECKING:
    from model_runtime.interface.protocol import ModelInfo
    from sessions.types import MemoryView

log = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0
WORTH_BYTES = 8 * 1024**2  # growth by less is not worth a look through the heap


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Bytes of this machine's memory. A GPU's weights and KVs are not among them."""

    resident_bytes: int
    program_bytes: int
    weights_bytes: int
    kv_bytes: int

    @property
    def other_bytes(self) -> int:
        """What is neither of the others. 0 where pages that are counted there were never written to."""
        return max(0, self.resident_bytes - self.program_bytes - self.weights_bytes - self.kv_bytes)


class ProcessMeter:
    """Build it when everything is imported and no model is loaded. Any thread."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._program_bytes = self.resident_bytes()

    def resident_bytes(self) -> int:
        """RSS: pages that are in memory, shared ones included."""
        return int(self._process.memory_info().rss)

    def read(self, info: ModelInfo, view: MemoryView) -> ProcessMemory:
        """What is held now."""
        on_cpu = info.device == "cpu"
        return ProcessMemory(
            resident_bytes=self.resident_bytes(),
            program_bytes=self._program_bytes,
            weights_bytes=info.weights_bytes if on_cpu else 0,
            kv_bytes=(view.device_used_bytes if on_cpu else 0) + view.host_used_bytes,
        )


class HeapTrimmer:
    """Has the allocator give back what it keeps, when the process has grown. A thread of its own, until `close`."""

    def __init__(self, meter: ProcessMeter) -> None:
        self._meter = meter
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="keepwarm-tidier", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def _loop(self) -> None:
        least_bytes = 0  # what was held after the last look, or less
        while not self._ended.wait(LOOK_EVERY_S):
            held_bytes = self._meter.resident_bytes()
            if held_bytes > least_bytes + WORTH_BYTES:
                heap.give_back()
                least_bytes = self._meter.resident_bytes()
                log.info("heap_trimmed before_bytes=%d after_bytes=%d", held_bytes, least_bytes)
            else:
                least_bytes = min(least_bytes, held_bytes)


def free_memory_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes a new process could take without swapping: the machine's, or its container's where that is less."""
    free_bytes = int(psutil.virtual_memory().available)
    try:
        limit_bytes = int((cgroup / "memory.max").read_text())
        used_bytes = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):  # no container, or no limit ("max")
        return free_bytes
    return max(0, min(free_bytes, limit_bytes - used_bytes))
