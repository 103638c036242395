"""The thread that forgets what only programs knew: conversations of nameless requests that were left long ago.

A stateless client brings its history with every request, so nothing is lost to it but the time of one reading.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable

from sessions.errors import ConversationBusy, ConversationNotFound, StoreError
from sessions.records import Conversation
from sessions.runs import RunTable
from sessions.store import Store

log = logging.getLogger(__name__)

INTERVAL_S = 3600.0


class Pruner:
    """Looks at the start and once an hour. `remove` deletes a conversation inside its claim. `keep_s` 0: never."""

    def __init__(self, store: Store, runs: RunTable, remove: Callable[[str, str], None], keep_s: float) -> None:
        self._store = store
        self._runs = runs
        self._remove = remove
        self._keep_s = keep_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="keepwarm-pruner", daemon=True)

    def start(self) -> None:
        if self._keep_s:
            self._thread.start()

    def close(self, timeout_s: float) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def prune(self) -> int:
        """How many were deleted. Raises `StoreError`."""
        count = 0
        for found in self._store.forgettable(time.time() - self._keep_s):
            if self._ended.is_set():
                break
            with contextlib.suppress(ConversationBusy, ConversationNotFound):
                count += self._forget(found)
        if count:
            log.info("conversations_pruned count=%d", count)
        return count

    def _forget(self, found: Conversation) -> bool:
        with self._runs.claim(found.conversation_id):
            now = self._store.conversation(found.owner_id, found.conversation_id)
            if now != found:  # somebody went on with it, named or pinned it
                return False
            self._remove(found.owner_id, found.conversation_id)
        return True

    def _loop(self) -> None:
        while not self._ended.is_set():
            try:
                self.prune()
            except StoreError:
                log.warning("conversations_not_pruned")
            self._ended.wait(INTERVAL_S)
