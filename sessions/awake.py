"""Timeouts that only count the time for which this process was awake.

A process that was stopped (SIGSTOP, a paused container or VM) or starved of a processor finds every deadline expired
when it wakes, although what it waited for had no chance to meet it. So a wait is divided into short looks, and no look
counts for more than its maximum.

On Linux `time.monotonic` stands still while the machine sleeps, but runs on while the process is stopped.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

LONGEST_LOOK_S = 1.0
_SLICE_S = 0.25
_TASKS = "/proc/self/task"


class AwakeClock:
    """Counts the seconds since it was created. Each `look` adds at most `longest_look_s`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, longest_look_s: float = LONGEST_LOOK_S) -> None:
        self._clock = clock
        self._longest_look_s = longest_look_s
        self._looked_at = clock()
        self._passed_s = 0.0

    def look(self) -> float:
        """The seconds counted until now."""
        now = self._clock()
        self._passed_s += min(max(0.0, now - self._looked_at), self._longest_look_s)
        self._looked_at = now
        return self._passed_s


def patiently(wait: Callable[[float], object], timeout_s: float) -> bool:
    """Calls `wait` with the seconds that it may take, until it returns something true (then returns True) or
    `timeout_s` have passed while this process was awake (then False)."""
    awake = AwakeClock()
    while True:
        left_s = timeout_s - awake.look()
        if wait(min(_SLICE_S, max(0.0, left_s))):
            return True
        if left_s <= 0:
            return False


def join(thread: threading.Thread, timeout_s: float) -> bool:
    """Waits for a thread. Whether it has ended; True for a thread that was never started."""

    def ended(slice_s: float) -> bool:
        thread.join(slice_s)
        return not thread.is_alive()

    return thread.ident is None or patiently(ended, timeout_s)


class Starvation:
    """How long threads of this process were ready to run but had no processor: their run delay, as counted by Linux.
    Always 0.0 if the kernel does not count it."""

    def __init__(self, tasks: str = _TASKS) -> None:
        self._tasks = tasks
        self._seen_ns: dict[str, int] = {}

    def look(self) -> float:
        """The seconds since the last look for which the most delayed thread waited. 0.0 at the first look."""
        now_ns = {task: self._delay_ns(task) for task in self._names()}
        waited_ns = [ns - self._seen_ns[task] for task, ns in now_ns.items() if task in self._seen_ns]
        self._seen_ns = now_ns
        return max(0, max(waited_ns, default=0)) / 1e9

    def forget(self) -> None:
        """Makes the next look a first one."""
        self._seen_ns = {}

    def _names(self) -> list[str]:
        try:
            return os.listdir(self._tasks)
        except OSError:
            return []

    def _delay_ns(self, task: str) -> int:
        try:
            with open(f"{self._tasks}/{task}/schedstat", encoding="ascii") as stat:
                return int(stat.read().split()[1])
        except (OSError, ValueError, IndexError):  # the thread has ended, or the kernel does not count
            return 0
