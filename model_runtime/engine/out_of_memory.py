"""Handles a device without memory left: unused KVs are freed and the call is tried once more. Translates torch's
errors into messages for the user."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from model_runtime.forward.device_memory import give_back_unused
from model_runtime.interface.errors import DeviceOutOfMemory, EngineClosed, GrammarFailed, NotNumbers
from model_runtime.interface.protocol import KV
from model_runtime.kv.slab import own_slab

logger = logging.getLogger(__name__)

T = TypeVar("T")


def translated(error: Exception) -> Exception:
    """The error to show to the user when a forward, or a copy to the device, raised `error`."""
    if isinstance(error, NotNumbers | GrammarFailed):
        return error
    text = str(error).lower()
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text or "out of memory" in text:
        return DeviceOutOfMemory(
            "The device ran out of memory for this answer. Drop another conversation's memory or start a shorter one."
        )
    return EngineClosed("The model failed on this answer; the server's log says why. Try again.")


class FreeAndRetry:
    """Frees KVs that no request uses and tries again. `idle_kvs` returns them and gives them up. Engine thread only."""

    def __init__(self, idle_kvs: Callable[[], Sequence[KV]]) -> None:
        self._idle_kvs = idle_kvs

    def once_more(self, call: Callable[[], T]) -> T:
        """Returns what `call` returns, after a second try if the device had no memory. Raises what it raises."""
        try:
            return call()
        except Exception as error:
            if not isinstance(translated(error), DeviceOutOfMemory):
                raise
            logger.warning("device out of memory error=%s", error)
        for kv in self._idle_kvs():
            own_slab(kv).free()
        give_back_unused()
        return call()
