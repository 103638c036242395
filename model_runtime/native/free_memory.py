"""How much of the machine's memory is free, for this process and its container."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_LIMITS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))  # cgroups 2 and 1
# Pages of files and what the kernel gives up too, which make room for memory that is asked for.
_CACHE = ("inactive_file", "active_file", "slab_reclaimable")


def free_memory_bytes(cgroup: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes that this process could take without swapping: in the machine or, if that is less, in its container or
    another control group. `cgroup` is where the groups are mounted, `process` says which ones this process is in."""
    import psutil  # the GPU's benchmarks run without it

    free_bytes = int(psutil.virtual_memory().available)
    for group in _groups(cgroup, process):
        left_bytes = _left_bytes(group)
        free_bytes = free_bytes if left_bytes is None else min(free_bytes, left_bytes)
    return max(0, free_bytes)


def free_swap_bytes() -> int:
    """What the machine can still swap out."""
    import psutil

    return int(psutil.swap_memory().free)


def _groups(root: Path, process: Path) -> Iterator[Path]:
    """The groups of this process and all around them, whose limits hold too. A container sees its own as the root."""
    yield root
    try:
        lines = process.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "memory" if controllers else root
        group = base / path.strip("/")
        while group != base and base in group.parents:
            yield group
            group = group.parent
        yield base


def _left_bytes(group: Path) -> int | None:
    """None without a limit."""
    for limit, used in _LIMITS:
        try:
            limit_bytes, used_bytes = int((group / limit).read_text()), int((group / used).read_text())
        except (OSError, ValueError):  # another kind of group, or no limit ("max")
            continue
        return limit_bytes - used_bytes + _cache_bytes(group)
    return None


def _cache_bytes(group: Path) -> int:
    try:
        entries = dict(line.split(maxsplit=1) for line in (group / "memory.stat").read_text().splitlines())
        return sum(int(entries.get(f"total_{key}", entries.get(key, 0))) for key in _CACHE)  # cgroup 1 has totals
    except (OSError, ValueError):
        return 0
