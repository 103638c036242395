"""The thread that moves old conversations of unnamed API requests to the bin.

A stateless client sends its history with every request, so all it loses is the time of one read. The conversations go
to the bin first all the same, and a clock that jumped moves nothing there (`ServedTime`).
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable

from sessions.errors import ConversationBusy, StoreError
from sessions.store.store import Store
from sessions.store.tables.bin import Unused
from sessions.store.tables.served_time import Clock
from sessions.turns.run import RunTable
from sessions.worker import Worker

log = logging.getLogger(__name__)

INTERVAL_S = 600.0
SHORTEST_INTERVAL_S = 1.0


class Pruner:
    """Prunes at start-up and every ten minutes. `free_memory` takes an owner and a conversation; it is called inside
    the conversation's claim, once the conversation is in the bin. With `keep_s` 0 nothing is pruned."""

    def __init__(
        self,
        store: Store,
        runs: RunTable,
        free_memory: Callable[[str, str], None],
        keep_s: float,
        clock: Clock,
    ) -> None:
        self._bin = store.bin
        self.served_time = store.served_time(clock)
        self._runs = runs
        self._free_memory = free_memory
        self._keep_s = keep_s
        self._clock = clock
        self._ended = threading.Event()
        self._worker = Worker("pruner", self._loop)

    def start(self) -> None:
        self._worker.start()

    def close(self, timeout_s: float) -> None:
        self._ended.set()
        self._worker.close(timeout_s)

    def prune(self) -> tuple[int, int]:
        """Prunes now. Returns how many conversations went to the bin, and how many were deleted from it. Raises
        `StoreError`."""
        seen = self.served_time.look()
        unused = self._bin.unused(seen.observed_s, self._keep_s) if self._keep_s else []
        if not seen.is_calm:
            return 0, 0
        count = sum(self._move_to_bin(one, seen.observed_s) for one in unused)
        deleted = self._bin.delete_overdue(seen.observed_s)
        if count or deleted:
            log.info("conversations_pruned to_bin=%d deleted=%d", count, deleted)
        return count, deleted

    def _move_to_bin(self, one: Unused, observed_s: float) -> bool:
        with contextlib.suppress(ConversationBusy):
            if self._ended.is_set():
                return False
            with self._runs.claim(one.conversation_id):
                if self._bin.put(one, observed_s, self._clock.wall()):
                    self._free_memory(one.owner_id, one.conversation_id)
                    return True
        return False

    def _loop(self) -> None:
        interval_s = min(INTERVAL_S, max(SHORTEST_INTERVAL_S, self._keep_s / 10)) if self._keep_s else INTERVAL_S
        while not self._ended.is_set():
            try:
                self.prune()
            except StoreError:
                log.warning("conversations_not_pruned")
            self._ended.wait(interval_s)
