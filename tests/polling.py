"""The one place where tests wait by looking again: no test sleeps on its own."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(is_so: Callable[[], object], timeout_s: float = 10.0, every_s: float = 0.01) -> None:
    """Returns once `is_so()` is true. Fails the test after `timeout_s`; asks every `every_s` seconds."""
    deadline_s = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline_s, f"Still not so after {timeout_s:g} s."
        time.sleep(every_s)


def pause(seconds: float) -> None:
    """Lets real time pass, for a test that shows that nothing happens meanwhile or that time alone has an effect."""
    time.sleep(seconds)
