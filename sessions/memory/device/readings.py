"""Beginnings that are being read right now: others of the same owner that begin alike wait for them and copy.

A turn is `announced` in the order of arrival, reads, and is over once its prompt is read or it has ended. It waits only
for turns that were announced before it, so no two wait for each other; and it waits before it asks for a lease, so it
holds no place and no room meanwhile. When the turn that it waits for ends early, it looks again: the next one that was
announced becomes the reader, and what was read so far can be copied all the same."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from sessions.ledger.ledger import common_prefix
from sessions.memory.device.shared_prefixes import LEAST_TOKENS


@dataclass(eq=False, slots=True)
class Reading:
    """What one turn is going to read. `ids` are its ledger's, of which its KV holds the first `read_tokens`."""

    number: int
    owner_id: str
    conversation_id: str
    ids: tuple[int, ...]
    is_long_rope: bool
    read_tokens: int = 0
    is_over: bool = False


class Readings:
    """Any thread. `is_on` is False where rows of one KV cannot be copied into another."""

    def __init__(self, is_on: bool) -> None:
        self._is_on = is_on
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._open: dict[int, Reading] = {}  # by number: in the order of arrival

    def announce(self, owner_id: str, conversation_id: str, ledger: tuple[int, ...], is_long_rope: bool) -> Reading:
        """A turn that arrives now. `ended` must follow, whatever becomes of it."""
        with self._changed:  # the number, too: `_open` is in the order of the numbers
            reading = Reading(next(self._numbers), owner_id, conversation_id, ledger, is_long_rope)
            if self._is_on:
                self._open[reading.number] = reading
        return reading

    def must_wait(self, reading: Reading, held_tokens: int) -> bool:
        """Whether much more than the `held_tokens` that can be had already is being read for an earlier turn."""
        with self._changed:
            return self._reader_for(reading, held_tokens) is not None

    def wait(self, reading: Reading, held_tokens: Callable[[], int], must_stop: Callable[[], bool]) -> float:
        """Waits until no earlier turn is reading what this one needs, or until it `must_stop`; returns the seconds.
        `held_tokens` says how much of the beginning can be had already."""
        started = time.monotonic()
        while not must_stop():
            held = held_tokens()  # outside of the lock: it takes another one
            with self._changed:
                reader = self._reader_for(reading, held)
                if reader is None:
                    break
                needed = common_prefix(reader.ids, reading.ids[:-1])

                def is_time(reader: Reading = reader, needed: int = needed) -> bool:
                    return must_stop() or reader.is_over or reader.read_tokens >= needed

                self._changed.wait_for(is_time)
        return time.monotonic() - started

    def read(self, reading: Reading, tokens: int) -> None:
        """Its KV now holds that many tokens of its ledger."""
        with self._changed:
            reading.read_tokens = tokens
            if tokens >= len(reading.ids):
                self._end(reading)
            self._changed.notify_all()

    def ended(self, reading: Reading) -> None:
        """It reads no more, whatever it has read."""
        with self._changed:
            self._end(reading)
            self._changed.notify_all()

    def look_again(self) -> None:
        """A turn that waits was asked to stop."""
        with self._changed:
            self._changed.notify_all()

    def _end(self, reading: Reading) -> None:
        reading.is_over = True
        self._open.pop(reading.number, None)

    def _reader_for(self, reading: Reading, held_tokens: int) -> Reading | None:
        """The earlier turn that is going to have most of this one's beginning, if that is worth the wait."""
        wanted, best, most = reading.ids[:-1], None, held_tokens + LEAST_TOKENS - 1
        for other in self._open.values():
            if other.number >= reading.number:
                break
            if (other.owner_id, other.is_long_rope) != (reading.owner_id, reading.is_long_rope):
                continue
            if other.conversation_id == reading.conversation_id or other.ids[:LEAST_TOKENS] != wanted[:LEAST_TOKENS]:
                continue
            common = common_prefix(other.ids, wanted)
            if common > max(most, other.read_tokens):
                best, most = other, common
        return best
