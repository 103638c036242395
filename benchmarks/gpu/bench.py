"""Shared by all sections: the device, the clock, the figures and the checks."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

GIB = 1024**3


@dataclass
class Bench:
    """One run. `seconds` bounds it; `is_tiny` shrinks every shape so that a CPU needs about a minute."""

    device: torch.device
    seconds: float
    is_tiny: bool
    figures: dict[str, float] = field(default_factory=dict)
    checks: dict[str, bool] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    _begin: float = field(default_factory=time.perf_counter)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the engine computes on this device."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    @property
    def left_s(self) -> float:
        return self.seconds - (time.perf_counter() - self._begin)

    def figure(self, name: str, value: float) -> float:
        """Records and prints a figure at once, so that it is not lost when something later fails."""
        self.figures[name] = value
        print(f"  {name} = {value:.4g}", flush=True)
        return value

    def check(self, name: str, passed: bool, detail: str = "") -> None:
        self.checks[name] = passed
        print(f"  {'ok    ' if passed else 'FAILED'} {name} {detail}", flush=True)

    def note(self, name: str, text: str) -> None:
        self.notes[name] = text
        print(f"  {name}: {text}", flush=True)

    def sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def timed_s(self, call: Callable[[], object]) -> float:
        """How many seconds `call` takes, the device's work included."""
        self.sync()
        begin = time.perf_counter()
        call()
        self.sync()
        return time.perf_counter() - begin

    def clean(self) -> None:
        """Frees unreferenced memory and resets the peak."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def held_gib(self) -> float:
        return torch.cuda.memory_allocated(self.device) / GIB if self.device.type == "cuda" else 0.0

    def peak_gib(self) -> float:
        return torch.cuda.max_memory_allocated(self.device) / GIB if self.device.type == "cuda" else 0.0

    def free_bytes(self) -> int:
        if self.device.type != "cuda":
            return 2 * GIB
        gc.collect()
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(self.device)[0])
