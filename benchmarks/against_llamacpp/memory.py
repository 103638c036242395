"""Memory of processes, as the kernel counts it."""

from __future__ import annotations

import os
import re
from pathlib import Path


def resident_bytes(pid: int | None = None) -> int:
    """What a process, or this one, has in memory."""
    return _status(pid, "VmRSS")


def peak_bytes() -> int:
    """The most that this process had in memory since `forget_peak`."""
    return _status(None, "VmHWM")


def forget_peak() -> None:
    """The peak is what is in memory now."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(pid: int | None, name: str) -> int:
    status = Path(f"/proc/{pid or os.getpid()}/status").read_text()
    found = re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
