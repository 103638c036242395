"""The marker `alone`: what measures time or memory runs while no other worker of the same run has a test at work.

`pytest -n 2` starts worker processes. Each test holds a shared lock on a file, a test marked `alone` holds the lock
alone. A second file is the turnstile: a test that waits to be alone stands in it, so that no other test can begin.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# Threads of torch that wait for each other spin by default, which takes the processors from the other worker. OpenMP
# reads this when it is loaded, before any test.
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_TURNSTILE = Path(__file__)
_ROOM = Path(__file__).with_name("__init__.py")


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before the clock of the time limit starts
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    is_alone = item.get_closest_marker("alone") is not None
    with _beside_others(is_alone):
        return (yield)


@contextmanager
def _beside_others(is_alone: bool) -> Iterator[None]:
    with _TURNSTILE.open("rb") as turnstile, _ROOM.open("rb") as room:
        fcntl.flock(turnstile, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH)
        fcntl.flock(turnstile, fcntl.LOCK_UN)
        yield
