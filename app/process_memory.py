"""How much of the machine's memory the process holds, and what for.

`resident = program + weights + KV + other`. *Program* is what the process held after all imports and before a model was
loaded: Python, torch, the page, their code and their data. *Other* is the rest, measured and not estimated: working
memory of answers, connections, files on their way to the disk, and freed memory that the allocator keeps.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from model_runtime.native import heap

if TYPE_CHECKING:
    from model_runtime.interface.protocol import ModelInfo
    from sessions.types import MemoryView

log = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0
WORTH_BYTES = 8 * 1024**2  # smaller growth is not worth a walk through the heap


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Bytes of this machine's memory. Weights and KVs on a GPU are not counted."""

    resident_bytes: int
    program_bytes: int
    weights_bytes: int
    kv_bytes: int

    @property
    def other_bytes(self) -> int:
        """The rest. 0 where the other parts count pages that were never written to."""
        return max(0, self.resident_bytes - self.program_bytes - self.weights_bytes - self.kv_bytes)


class ProcessMeter:
    """Measures the process. Build it after all imports and before a model is loaded. Any thread."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._program_bytes = self.resident_bytes()

    def resident_bytes(self) -> int:
        """RSS: the pages in memory, shared ones included."""
        return int(self._process.memory_info().rss)

    def read(self, info: ModelInfo, view: MemoryView) -> ProcessMemory:
        """The memory held now, by purpose."""
        on_cpu = info.device == "cpu"
        return ProcessMemory(
            resident_bytes=self.resident_bytes(),
            program_bytes=self._program_bytes,
            weights_bytes=info.weights_bytes if on_cpu else 0,
            kv_bytes=(view.device_used_bytes if on_cpu else 0) + view.host_used_bytes,
        )


class HeapTrimmer:
    """Makes the allocator return freed memory to the system when the process has grown. Has its own thread until
    `close`."""

    def __init__(self, meter: ProcessMeter) -> None:
        self._meter = meter
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="keepwarm-tidier", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def _loop(self) -> None:
        least_bytes = 0  # at most what was held after the last look
        while not self._ended.wait(LOOK_EVERY_S):
            held_bytes = self._meter.resident_bytes()
            if held_bytes > least_bytes + WORTH_BYTES:
                heap.give_back()
                least_bytes = self._meter.resident_bytes()
                log.info("heap_trimmed before_bytes=%d after_bytes=%d", held_bytes, least_bytes)
            else:
                least_bytes = min(least_bytes, held_bytes)
