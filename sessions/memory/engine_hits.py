"""What a remote engine turned out to have of each conversation, and for how long it has kept things so far."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from sessions.types import EngineHit

REMEMBERED_TURNS = 64  # of all conversations together: what an engine keeps depends on how busy it is
HIT_SHARE = 0.5  # of what it could have had


@dataclass(frozen=True, slots=True)
class _Turn:
    """The seconds since the turn before it, and whether that one's rows were still there."""

    after_s: float
    was_hit: bool


class EngineHits:
    """Any thread. Times are monotonic; `now` is the wall clock, to be shown."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, now: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._now = now
        self._lock = threading.Lock()
        self._last: dict[str, tuple[float, EngineHit]] = {}
        self._turns: deque[_Turn] = deque(maxlen=REMEMBERED_TURNS)

    def reported(self, conversation_id: str, kept_tokens: int, reused_tokens: int) -> None:
        """An answer ended: of `kept_tokens` that earlier turns had left there it reused so many."""
        at = self._clock()
        with self._lock:
            before = self._last.get(conversation_id)
            if before is not None and kept_tokens > 0:
                self._turns.append(_Turn(at - before[0], reused_tokens >= HIT_SHARE * kept_tokens))
            self._last[conversation_id] = at, EngineHit(self._now(), kept_tokens, reused_tokens)

    def of(self, conversation_id: str) -> EngineHit | None:
        """The last report, with what is to be expected now; None without one since the start."""
        with self._lock:
            found = self._last.get(conversation_id)
            if found is None:
                return None
            at, hit = found
            return EngineHit(hit.at, hit.kept_tokens, hit.reused_tokens, self._is_likely(self._clock() - at))

    def forget(self, conversation_id: str) -> None:
        """Of a conversation that was deleted."""
        with self._lock:
            self._last.pop(conversation_id, None)

    def _is_likely(self, after_s: float) -> bool | None:
        """None where nothing like it was seen."""
        if any(turn.after_s <= after_s and not turn.was_hit for turn in self._turns):
            return False
        return True if any(turn.after_s >= after_s and turn.was_hit for turn in self._turns) else None
