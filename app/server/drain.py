"""Graceful shutdown: no new turn begins; running answers finish within a limit, or are stopped and marked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from sessions.awake import AwakeClock

if TYPE_CHECKING:
    from sessions.manager import SessionManager

STOP_S = 2.0  # how long a stopped answer may take to be stored and sent


class Drain:
    """Call `begin` once, from any thread or signal handler, then `is_over` many times a second until it is true. The
    limit counts only seconds for which this process was awake."""

    def __init__(self, manager: SessionManager, limit_s: float, say: Callable[[str], None]) -> None:
        self._manager = manager
        self._limit_s = limit_s
        self._say = say
        self._waited: AwakeClock | None = None
        self._has_stopped = False

    @property
    def is_on(self) -> bool:
        return self._waited is not None

    def begin(self) -> None:
        """Starts to drain and returns at once: the thread that a signal interrupted may itself hold the runs' lock."""
        if self._waited is None:
            self._waited = AwakeClock()
            threading.Thread(target=self._refuse_new, name="keepwarm-drain", daemon=True).start()

    def is_over(self) -> bool:
        """Whether the server may end. Stops the remaining answers when the limit is reached."""
        if self._waited is None:
            return False
        waited_s = self._waited.look()
        if not self._manager.is_draining:
            return False
        if not any(self._manager.open_answers()):
            return True
        if waited_s >= self._limit_s and not self._has_stopped:
            self._has_stopped = True
            self._manager.interrupt_all()
        return waited_s >= self._limit_s + STOP_S

    def _refuse_new(self) -> None:
        self._manager.drain()
        if count := sum(self._manager.open_answers()):
            answers = "answer" if count == 1 else "answers"
            self._say(f"Finishing {count} {answers}, for {self._limit_s:g} s at most; press Ctrl-C to stop at once.")
