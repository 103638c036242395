"""Timeouts that have not expired when a stopped process wakes."""

from __future__ import annotations

import threading
import time

from sessions.awake import AwakeClock, join, patiently


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


def test_a_pause_counts_as_one_look() -> None:
    clock = Clock()
    awake = AwakeClock(clock, longest_look_s=0.5)
    clock.now += 0.4
    assert round(awake.look(), 6) == 0.4
    clock.now += 75.0
    assert round(awake.look(), 6) == 0.9
    clock.now -= 3.0  # the clock never goes back; if it did, nothing would be subtracted
    assert round(awake.look(), 6) == 0.9


def test_a_wait_ends_when_it_is_true_or_its_time_is_up() -> None:
    event = threading.Event()
    began = time.monotonic()
    assert not patiently(event.wait, 0.6)
    assert 0.55 < time.monotonic() - began < 5.0
    threading.Timer(0.3, event.set).start()
    assert patiently(event.wait, 30.0)
    assert patiently(event.wait, 0.0)


def test_a_thread_is_waited_for() -> None:
    event = threading.Event()
    thread = threading.Thread(target=event.wait)
    assert join(thread, 0.0)  # never started
    thread.start()
    assert not join(thread, 0.3)
    event.set()
    assert join(thread, 30.0)
