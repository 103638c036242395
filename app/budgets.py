"""How much memory and disk KVs may take, from the flags or from what the machine has free."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from app import units
from model_runtime.native.free_memory import free_memory_bytes
from sessions.config import default_disk_kv_budget_bytes

if TYPE_CHECKING:
    from model_runtime.interface.config import KvDtype, SavedKvDtype

DEFAULT_SHARE = 0.5
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Budgets:
    """Sizes as they were typed; None means that the size is chosen from the machine. `kv_dtype` is how the device keeps
    KVs, `cold_kv_dtype` how host memory and disk keep them."""

    device: str | None
    disk: str | None
    host: str | None = None
    kv_dtype: KvDtype = "auto"
    cold_kv_dtype: SavedKvDtype = "exact"


def asked_bytes(budget: str | None) -> int | None:
    """The size that was asked for; None for a share of what the model leaves free, or where nothing was asked for."""
    return None if budget is None or "%" in budget else units.parse_budget(budget, 0)


def device_budget_bytes(budget: str | None, device: str, say: Say) -> int:
    """What KVs may take on the device. Call after the model is loaded: its weights are no longer free."""
    from model_runtime.forward.device_memory import default_arena_bytes, free_device_bytes

    on_gpu = free_device_bytes(device)
    free_bytes = free_memory_bytes() if on_gpu is None else on_gpu
    if budget is None:
        chosen = int(free_bytes * DEFAULT_SHARE) if on_gpu is None else default_arena_bytes(on_gpu)
        share = f"{chosen / max(1, free_bytes):.0%} of the {units.size(free_bytes)} free"
        why = f"{share} on {device}; choose with --device-kv-budget"
    else:
        chosen = units.parse_budget(budget, free_bytes)
        why = f"as requested, with {units.size(free_bytes)} free on {device}"
    say(f"KV budget {units.size(chosen)} ({why}).")
    return chosen


def host_budget_bytes(budget: str | None, device: str, device_budget_bytes: int, say: Say) -> int:
    """What KVs that left the device may take in host memory. On a CPU the device is host memory too, so the device's
    budget is not free for a second copy. Raises `ValueError` if the budget does not fit."""
    on_cpu = device == "cpu"
    free_bytes = max(0, free_memory_bytes() - (device_budget_bytes if on_cpu else 0))
    if budget is None:
        chosen = 0 if on_cpu else int(free_bytes * DEFAULT_SHARE)
        why = "the device is this machine's memory" if on_cpu else "half of the free memory"
    else:
        chosen = 0 if budget.strip() == "0" else units.parse_budget(budget, free_bytes)
        why = f"as requested, with {units.size(free_bytes)} free"
    if chosen > free_bytes:
        raise ValueError(
            f"A host KV budget of {units.size(chosen)} does not fit: only {units.size(free_bytes)} of memory is free "
            "beside the model and the device's KV budget. Choose less with --host-kv-budget."
        )
    what = f"Host budget {units.size(chosen)}" if chosen else "No host tier"
    say(f"{what} ({why}; choose with --host-kv-budget).")
    return chosen


def disk_budget_bytes(budget: str | None, data_dir: Path, saved_bytes: int, say: Say) -> int:
    """What saved KVs may take on disk. Bytes that are already saved count as free; otherwise every start would choose
    less than the one before."""
    free_bytes = shutil.disk_usage(data_dir).free + saved_bytes
    if budget is None:
        chosen = default_disk_kv_budget_bytes(free_bytes)
    else:
        chosen = 0 if budget.strip() == "0" else units.parse_budget(budget, free_bytes)
    if chosen:
        say(f"Disk budget {units.size(chosen)} of {units.size(free_bytes)} free (0 saves none).")
    else:
        say("No KV is saved to disk: after a restart every conversation is read again.")
    return chosen
