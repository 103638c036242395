"""A background thread with a name, a start and a patient end."""

from __future__ import annotations

import threading
from collections.abc import Callable

from sessions.awake import join


class Worker:
    """Runs `loop` on one daemon thread, named `keepwarm-NAME` in stack dumps. Starts once."""

    def __init__(self, name: str, loop: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=loop, name=f"keepwarm-{name}", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether the thread was started and has not ended."""
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout_s: float) -> bool:
        """Waits until `loop` returns, which its owner has asked it to do. Returns False when it is still running after
        `timeout_s`, counted while this process is awake; True for a thread that was never started."""
        return join(self._thread, timeout_s)
