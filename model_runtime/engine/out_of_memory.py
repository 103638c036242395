"""When the device refuses memory: what nobody uses goes, and the same is tried once more."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from model_runtime.engine.failures import translated
from model_runtime.forward.device_memory import give_back_unused
from model_runtime.interface.errors import DeviceOutOfMemory
from model_runtime.interface.protocol import KV
from model_runtime.kv.slab import own_slab

logger = logging.getLogger(__name__)

T = TypeVar("T")


class FreeAndRetry:
    """`idle_kvs` names KVs that nobody uses, and gives them up. Engine thread only."""

    def __init__(self, idle_kvs: Callable[[], Sequence[KV]]) -> None:
        self._idle_kvs = idle_kvs

    def once_more(self, call: Callable[[], T]) -> T:
        """What `call` returns, the second time if the device had no memory the first time. Raises what it raises."""
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
