"""The host tier: saved segments in host memory, between the device and the disk, with its own budget.

A KV that is evicted from the device moves here in two phases: its bytes are reserved and its rows are copied segment by
segment; only then is it freed on the device. On the way back, the copies here are dropped once the device holds all of
them. The segments have the same keys as on disk, so a chain may be partly here and partly there.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from model_runtime.interface.protocol import Segment
from model_runtime.interface.segments import SegmentIdentity
from sessions.memory.eviction import SegmentCandidate, choose_tails
from sessions.memory.saved.speed import ASSUMED_HOST_BYTES_PER_S, RestoreSpeed
from sessions.store.tables.segments import Saved, SavedSegment


@dataclass(eq=False, slots=True)
class _Entry:
    segment: Segment
    owner_id: str
    conversation_ids: set[str]
    last_used_at: float = field(default_factory=time.monotonic)  # monotonic: the wall clock may be set

    @property
    def identity(self) -> SegmentIdentity:
        return self.segment.identity


class Host:
    """Any thread. `lost_s(start, tokens, key)` is the expected cost in seconds of losing a run of rows."""

    def __init__(self, budget_bytes: int, lost_s: Callable[[int, int, str], float]) -> None:
        self.budget_bytes = budget_bytes
        self.speed = RestoreSpeed(ASSUMED_HOST_BYTES_PER_S)
        self._lost_s = lost_s
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._reserved_bytes = 0
        self._in_use: Counter[str] = Counter()

    @property
    def used_bytes(self) -> int:
        with self._lock:
            return self._used()

    @property
    def reserved_bytes(self) -> int:
        with self._lock:
            return self._reserved_bytes

    def reserve(self, owner_id: str, conversation_id: str, needed_bytes: int) -> bool:
        """Reserves room for a KV that is moved here. The least valuable segments are dropped for it; of other owners
        only what exceeds their shares. If that is not enough, nothing is dropped: then False. `put` or `cancel` ends
        every reservation."""
        with self._lock:
            excess_bytes = self._used() + self._reserved_bytes + needed_bytes - self.budget_bytes
            if excess_bytes > 0:
                tails = self._tails({conversation_id, *self._in_use})
                chosen = choose_tails(tails, excess_bytes, owner_id, self.budget_bytes)
                if chosen is None:
                    return False
                for key in chosen:
                    del self._entries[key]
            self._reserved_bytes += needed_bytes
            return True

    def put(self, owner_id: str, conversation_id: str, segment: Segment, reserved_bytes: int) -> None:
        """Stores a segment; its reservation becomes used memory."""
        with self._lock:
            self._reserved_bytes -= reserved_bytes
            entry = self._entries.get(segment.identity.key)
            if entry is None:
                self._entries[segment.identity.key] = _Entry(segment, owner_id, {conversation_id})
            else:
                entry.conversation_ids.add(conversation_id)
                entry.last_used_at = time.monotonic()

    def cancel(self, reserved_bytes: int) -> None:
        with self._lock:
            self._reserved_bytes -= reserved_bytes

    def adopt(self, conversation_id: str, key: str) -> bool:
        """Shares a segment that another conversation put here (of the same owner: the key depends on it). False if
        there is none."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                entry.conversation_ids.add(conversation_id)
                entry.last_used_at = time.monotonic()
            return entry is not None

    def get(self, key: str) -> Segment | None:
        with self._lock:
            entry = self._entries.get(key)
            return entry.segment if entry is not None else None

    def of_conversation(self, conversation_id: str) -> list[SavedSegment]:
        """The conversation's segments, as rows like those of the disk, earliest positions first."""
        with self._lock:
            found = [_saved(e) for e in self._entries.values() if conversation_id in e.conversation_ids]
        return sorted(found, key=lambda saved: saved.start_tokens)

    def conversations(self) -> set[str]:
        """Those that have something here."""
        with self._lock:
            return {one for entry in self._entries.values() for one in entry.conversation_ids}

    def by_conversation(self) -> dict[str, Saved]:
        """What each conversation, of any owner, has here. A segment that two conversations share counts for both."""
        found: dict[str, Saved] = {}
        with self._lock:
            for entry in self._entries.values():
                for c in entry.conversation_ids:
                    before = found.get(c, Saved(0, 0, 0))
                    end_tokens = max(before.tokens, entry.identity.end_tokens)
                    size_bytes = before.size_bytes + entry.segment.data_bytes
                    found[c] = Saved(end_tokens, size_bytes, before.all_tokens + len(entry.identity.token_ids))
        return found

    def release(self, conversation_id: str, keys: Iterable[str] | None = None) -> int:
        """Removes the conversation's references to these segments (None: all). Drops those that have no reference left,
        and returns their bytes."""
        freed_bytes = 0
        with self._lock:
            for key in list(self._entries if keys is None else keys):
                entry = self._entries.get(key)
                if entry is None:
                    continue
                entry.conversation_ids.discard(conversation_id)
                if not entry.conversation_ids:
                    freed_bytes += entry.segment.data_bytes
                    del self._entries[key]
        return freed_bytes

    def discard(self, keys: Iterable[str]) -> None:
        """Drops segments that cannot be trusted, for all conversations."""
        with self._lock:
            for key in keys:
                self._entries.pop(key, None)

    @contextlib.contextmanager
    def using(self, conversation_id: str) -> Iterator[None]:
        """Inside, none of the conversation's segments is dropped to make room."""
        with self._lock:
            self._in_use[conversation_id] += 1
        try:
            yield
        finally:
            with self._lock:
                self._in_use[conversation_id] -= 1
                self._in_use += Counter()  # forgets the zeros

    def _used(self) -> int:
        return sum(entry.segment.data_bytes for entry in self._entries.values())

    def _tails(self, protected: set[str]) -> list[SegmentCandidate]:
        now = time.monotonic()
        return [
            SegmentCandidate(
                key=key,
                parent_key=e.identity.parent_key,
                owner_id=e.owner_id,
                held_bytes=e.segment.data_bytes,
                idle_s=now - e.last_used_at,
                start_tokens=e.identity.start_tokens,
                is_protected=not protected.isdisjoint(e.conversation_ids),
                lost_s=self._lost_s(e.identity.start_tokens, len(e.identity.token_ids), key),
            )
            for key, e in self._entries.items()
        ]


def _saved(entry: _Entry) -> SavedSegment:
    identity = entry.identity
    return SavedSegment(
        key=identity.key,
        parent_key=identity.parent_key,
        owner_id=entry.owner_id,
        fingerprint=identity.fingerprint,
        start_tokens=identity.start_tokens,
        tokens=len(identity.token_ids),
        size_bytes=entry.segment.data_bytes,
        last_used_at=entry.last_used_at,
        conversation_ids=tuple(entry.conversation_ids),
    )
