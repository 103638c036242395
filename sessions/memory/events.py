"""The lines of the memory log: sentences about each owner's KVs. Kept in memory, up to a number per owner."""

from __future__ import annotations

import threading
import time
from collections import deque

from sessions.types import MemoryEvent


class EventLog:
    """Any thread may write or read."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._lock = threading.Lock()
        self._events: dict[str, deque[MemoryEvent]] = {}

    def add(self, owner_id: str, conversation_id: str, text: str) -> None:
        event = MemoryEvent(at=time.time(), text=text, conversation_id=conversation_id)
        with self._lock:
            self._events.setdefault(owner_id, deque(maxlen=self._length)).append(event)

    def of(self, owner_id: str) -> tuple[MemoryEvent, ...]:
        """Newest first."""
        with self._lock:
            return tuple(reversed(self._events.get(owner_id, ())))

    def forget(self, owner_id: str, conversation_id: str) -> None:
        """Removes the lines of a deleted conversation: they contain its title."""
        with self._lock:
            events = self._events.get(owner_id, deque())
            self._events[owner_id] = deque(
                (event for event in events if event.conversation_id != conversation_id), maxlen=self._length
            )
