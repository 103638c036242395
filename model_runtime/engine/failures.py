"""The one border where torch's errors become sentences."""

from __future__ import annotations

import torch

from model_runtime.interface.errors import DeviceOutOfMemory, EngineClosed, NotNumbers


def translated(error: Exception) -> Exception:
    """What a person is told when a forward, or a copy to the device, raised `error`."""
    if isinstance(error, NotNumbers):
        return error
    text = str(error).lower()
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text or "out of memory" in text:
        return DeviceOutOfMemory(
            "The device ran out of memory for this answer. Drop another conversation's memory or start a shorter one."
        )
    return EngineClosed("The model failed on this answer; the server's log says why. Try again.")
