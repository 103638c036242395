"""How often a password may be tried: a budget for each browser or address, and a pace for all of them together.

A browser that has logged in before has its own budget, which no one else can use up. All others are counted by address.
The pace is for many addresses at once: it makes tries wait, so that a thousand machines guess no faster than one a
second. It refuses only unknown browsers, and only while the queue is longer than a person would wait.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

TRIES_A_MINUTE, TRIES_AN_HOUR = 5, 20  # of one browser or address
UNHINDERED_A_MINUTE = 30  # tries of all together before the pace applies
PACE_S = 1.0
LONGEST_WAIT_S, LONGEST_WAIT_OF_KNOWN_S = 15.0, 5.0
MOST_BUDGETS = 10_000  # bounds the memory that a million addresses take; the least recently used goes first
MINUTE_S, HOUR_S = 60.0, 3600.0


@dataclass(frozen=True, slots=True)
class Permit:
    """The right to one try. `refused_s` > 0: no try now, come back in that many seconds. Otherwise wait `wait_s`, then
    try. `tries` counts the tries of the last hour, including this one."""

    wait_s: float
    refused_s: float
    tries: int
    key: str = ""
    at: float = 0.0


@dataclass(slots=True)
class _Pace:
    """Times at which tries are allowed, one after another."""

    slots: deque[float] = field(default_factory=deque)

    def next_slot(self, now: float) -> float:
        while self.slots and self.slots[0] <= now - MINUTE_S:
            self.slots.popleft()
        return now if len(self.slots) < UNHINDERED_A_MINUTE else max(now, self.slots[-1] + PACE_S)


class Throttle:
    """Counts tries. A try counts as failed until it is given back, so that parallel tries cannot slip through together.
    Any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._budgets: OrderedDict[str, list[float]] = OrderedDict()
        self._paces = {False: _Pace(), True: _Pace()}  # of unknown and of known browsers
        self._lock = threading.Lock()

    def take(self, key: str, is_known: bool) -> Permit:
        """A permit for one try of the browser or address that `key` stands for."""
        with self._lock:
            now = self._clock()
            tries = [at for at in self._budgets.get(key, ()) if at > now - HOUR_S]
            if refused_s := _until_allowed(tries, now):
                return Permit(0.0, refused_s, len(tries))
            slot = self._paces[is_known].next_slot(now)
            if is_known:
                slot = min(slot, now + LONGEST_WAIT_OF_KNOWN_S)
            elif slot - now > LONGEST_WAIT_S:
                return Permit(0.0, slot - now - LONGEST_WAIT_S, len(tries))
            self._paces[is_known].slots.append(slot)
            self._budgets[key] = [*tries, slot]
            self._budgets.move_to_end(key)
            while len(self._budgets) > MOST_BUDGETS:
                self._budgets.popitem(last=False)
            return Permit(slot - now, 0.0, len(tries) + 1, key, slot)

    def give_back(self, permit: Permit) -> None:
        """The password was right: the try no longer counts."""
        with self._lock:
            for pace in self._paces.values():
                if permit.at in pace.slots:
                    pace.slots.remove(permit.at)
            if (tries := self._budgets.get(permit.key)) is not None:
                if permit.at in tries:
                    tries.remove(permit.at)
                if not tries:
                    del self._budgets[permit.key]

    def __len__(self) -> int:
        """How many budgets take memory."""
        return len(self._budgets)


def _until_allowed(tries: list[float], now: float) -> float:
    """Seconds until the next try is allowed; 0 if it is now."""
    waits = [
        tries[-most] + window_s - now
        for most, window_s in ((TRIES_A_MINUTE, MINUTE_S), (TRIES_AN_HOUR, HOUR_S))
        if len(tries) >= most
    ]
    return max(0.0, *waits, 0.0)
