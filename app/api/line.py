"""The open requests of each owner, and those that wait in line until one of these ends."""

from __future__ import annotations

import asyncio
from collections import Counter, deque

from app.problems import RETRY_BUSY_S, Problem

MOST_OPEN = 64  # of one owner; further ones would not be answered any sooner
MOST_WAITING = 1024  # of one owner
PATIENCE_S = 60.0


class Line:
    """On one event loop only, except `waiting`, which any thread may read."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @property
    def waiting(self) -> int:
        """How many requests wait, of all owners."""
        return sum(map(len, list(self._waiting.values())))

    def is_full(self, owner_id: str) -> bool:
        """Whether the owner's next request waits."""
        return self._open[owner_id] >= MOST_OPEN

    async def enter(self, owner_id: str) -> bool:
        """Opens a request, after those of the same owner that wait already. True; `leave` must be called for it. Raises
        `Problem` 429 for one that waited as long as is allowed, or that does not even find a place in the line."""
        if not self.is_full(owner_id):
            self._open[owner_id] += 1
            return True
        line = self._waiting.setdefault(owner_id, deque())
        if len(line) >= MOST_WAITING:
            raise _too_many(f"{len(line):,} further ones wait")
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.append(place)
        is_in = False
        try:
            async with asyncio.timeout(PATIENCE_S):
                await place
            is_in = True
        except TimeoutError:
            raise _too_many(f"this one has waited {PATIENCE_S:g} seconds for one of them to end") from None
        finally:
            self._settle(owner_id, place, is_in)
        return is_in

    def leave(self, owner_id: str) -> None:
        """A request has ended: the next one in line takes its place."""
        line = self._waiting.get(owner_id)
        while line:
            place = line.popleft()
            if not place.done():
                place.set_result(None)
                return
        self._open[owner_id] -= 1
        if not self._open[owner_id]:
            del self._open[owner_id]

    def _settle(self, owner_id: str, place: asyncio.Future[None], is_in: bool) -> None:
        """A wait is over. One that was given up hands on a place that came at that moment."""
        if not is_in and place.done() and not place.cancelled():
            self.leave(owner_id)
        line = self._waiting.get(owner_id, deque())
        if place in line:
            line.remove(place)
        if not line:
            self._waiting.pop(owner_id, None)


def _too_many(why: str) -> Problem:
    sentence = f"{MOST_OPEN} of your requests are already open, and {why}."
    return Problem(429, sentence, "too_many_requests", retry_after_s=RETRY_BUSY_S)
