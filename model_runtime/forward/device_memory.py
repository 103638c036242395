"""How much memory a CUDA device has left."""

from __future__ import annotations

import gc

import torch

CUDA_SHARE = 0.8
_CUDA_SPARE_BYTES = 2 * 1024**3  # activations of a chunk, de-quantised blocks, recorded steps


def give_back_unused() -> None:
    """Frees memory that Python no longer references and that torch keeps for later allocations."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def free_device_bytes(device: str) -> int | None:
    """How many bytes can still be allocated on a CUDA device; None for the CPU, which uses the machine's memory. Frees
    torch's unused cache first."""
    if not device.startswith("cuda"):
        return None
    give_back_unused()
    free_bytes, _ = torch.cuda.mem_get_info(torch.device(device))
    return int(free_bytes)


def default_arena_bytes(free_bytes: int) -> int:
    """The KV budget on a GPU with the model loaded: most of the free memory, minus what a step needs."""
    return max(int(free_bytes * 0.5), min(int(free_bytes * CUDA_SHARE), free_bytes - _CUDA_SPARE_BYTES))
