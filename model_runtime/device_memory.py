"""How much memory an accelerator has left."""

from __future__ import annotations

import torch


def free_device_bytes(device: str) -> int | None:
    """Bytes a process can still take on a CUDA device; None for the CPU, whose memory is the machine's."""
    if not device.startswith("cuda"):
        return None
    free_bytes, _ = torch.cuda.mem_get_info(torch.device(device))
    return int(free_bytes)
