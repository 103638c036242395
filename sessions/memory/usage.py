"""The bytes that each tier held over the last half hour, for the memory panel's plot. Kept in memory only."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from sessions.errors import StoreError
from sessions.types import Usage
from sessions.worker import Worker

log = logging.getLogger(__name__)

KEPT_S = 30 * 60.0


class UsageHistory:
    """Calls `measure` every `interval_s` seconds on its own thread, the first time at start-up."""

    def __init__(self, measure: Callable[[], Usage], interval_s: float) -> None:
        self._measure = measure
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._samples: deque[Usage] = deque(maxlen=int(KEPT_S / interval_s))
        self._ended = threading.Event()
        self._worker = Worker("history", self._loop)

    def start(self) -> None:
        self._worker.start()

    def close(self, timeout_s: float) -> None:
        self._ended.set()
        self._worker.close(timeout_s)

    def samples(self) -> tuple[Usage, ...]:
        """The measurements, oldest first."""
        with self._lock:
            return tuple(self._samples)

    def _loop(self) -> None:
        while True:
            try:
                usage = self._measure()
                with self._lock:
                    self._samples.append(usage)
            except StoreError:  # a gap in the plot
                log.warning("usage_not_measured")
            if self._ended.wait(self._interval_s):
                return
