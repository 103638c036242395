"""Prints a benchmark's results: a table for people, then one JSON line for machines."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

_PACKAGES = ("torch", "transformers", "bitsandbytes", "accelerate")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints aligned columns; the first is text, the others are figures."""
    texts = [list(header), *([f"{cell:,.3g}" if isinstance(cell, float) else str(cell) for cell in r] for r in rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(header))]
    for row in texts:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells[1:]]))
    print()


def finish(benchmark: str, figures: dict[str, float], device: str, model: str) -> None:
    """Prints the closing JSON line."""
    line = {
        "benchmark": benchmark,
        "figures": {name: float(f"{value:.4g}") for name, value in figures.items()},
        "device": device,
        "model": model,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "commit": commit(),
    }
    print(json.dumps(line))


def commit() -> str:
    """The measured commit, with "-dirty" if the tree differs from it; "unknown" outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def device_name(device: str) -> str:
    """The GPU's name, or the CPU's with the cores torch uses."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
