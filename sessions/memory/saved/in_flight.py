"""Segments that are waiting to be written to disk. A KV that is evicted meanwhile can be restored from them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

from model_runtime.interface.protocol import Segment
from sessions.store.tables.segments import SavedSegment


class InFlight:
    """Any thread. The writer adds and removes segments, and bounds how many there are."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._segments: dict[str, tuple[str, str, Segment]] = {}  # by key: owner, conversation, segment

    def put(self, owner_id: str, conversation_id: str, segments: Iterable[Segment]) -> None:
        with self._lock:
            self._segments |= {segment.identity.key: (owner_id, conversation_id, segment) for segment in segments}

    def remove(self, segments: Iterable[Segment]) -> None:
        """Removes segments that are on disk now, or that will not be written."""
        with self._lock:
            for segment in segments:
                self._segments.pop(segment.identity.key, None)

    def get(self, key: str) -> Segment | None:
        with self._lock:
            found = self._segments.get(key)
            return found[-1] if found else None

    def of_conversation(self, conversation_id: str) -> list[SavedSegment]:
        """The conversation's segments, as rows like those of the disk."""
        with self._lock:
            own = [(owner, segment) for owner, of, segment in self._segments.values() if of == conversation_id]
        return [
            SavedSegment(
                key=segment.identity.key,
                parent_key=segment.identity.parent_key,
                owner_id=owner_id,
                fingerprint=segment.identity.fingerprint,
                start_tokens=segment.identity.start_tokens,
                tokens=len(segment.identity.token_ids),
                size_bytes=segment.data_bytes,
                last_used_at=time.time(),
                conversation_ids=(conversation_id,),
            )
            for owner_id, segment in own
        ]
