"""Sizes as people write them on the command line: bytes, "4GiB", "80%"."""

from __future__ import annotations

import re
from pathlib import Path

import psutil

UNIT_BYTES = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "tb": 1000**4,
    "k": 1024,
    "m": 1024**2,
    "g": 1024**3,
    "t": 1024**4,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
    "tib": 1024**4,
}
DEFAULT_BUDGET_SHARE = 0.5
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*|%)\s*", re.IGNORECASE)


def parse_budget(text: str, whole_bytes: int) -> int:
    """Bytes of `text`, a percentage being one of `whole_bytes`. Raises `ValueError` with a sentence."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"A size looks like 2000000000, 4GiB or 80%, not {text!r}.")
    number, unit = float(match[1]), match[2].lower()
    if unit == "%":
        if not 0 < number <= 100:
            raise ValueError(f"A share of the memory must lie above 0% and at most at 100%, not {text.strip()}.")
        return int(whole_bytes * number / 100)
    if unit not in UNIT_BYTES:
        raise ValueError(f"Unknown unit in {text!r}: use MiB, GiB, MB, GB, or % of the free memory.")
    budget_bytes = int(number * UNIT_BYTES[unit])
    if budget_bytes <= 0:
        raise ValueError(f"The KV budget must be larger than nothing, not {text.strip()}.")
    return budget_bytes


def free_memory_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes a new process could take without swapping: the machine's, or its container's where that is less."""
    free_bytes = int(psutil.virtual_memory().available)
    try:
        limit_bytes = int((cgroup / "memory.max").read_text())
        used_bytes = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):  # no container, or no limit ("max")
        return free_bytes
    return max(0, min(free_bytes, limit_bytes - used_bytes))
