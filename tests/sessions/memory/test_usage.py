"""The plot's numbers: one at once, then one per interval; the oldest are dropped, and a failing database leaves a
gap."""

from __future__ import annotations

import itertools

from sessions.errors import StoreError
from sessions.memory.usage import KEPT_S, UsageHistory
from sessions.types import Usage
from tests.sessions.conftest import MakeHarness
from tests.sessions.session_harness import ADA, until


def test_samples_are_taken_regularly_and_the_oldest_are_dropped() -> None:
    count = itertools.count()

    def measure() -> Usage:
        number = next(count)
        if number == 3:
            raise StoreError("for a moment")
        return Usage(float(number), number, 0, 0)

    history = UsageHistory(measure, interval_s=0.005)
    assert history.samples() == ()
    history.start()
    until(lambda: len(history.samples()) > 8)
    history.close(1.0)
    seen = [usage.device_bytes for usage in history.samples()]
    assert seen[:4] == [0, 1, 2, 4]
    small = UsageHistory(measure, interval_s=KEPT_S / 2)
    small._samples.extend(Usage(float(n), n, 0, 0) for n in range(5))  # noqa: SLF001 - half an hour of samples at once
    assert [usage.device_bytes for usage in small.samples()] == [3, 4]


def test_the_memory_view_carries_them(make_harness: MakeHarness) -> None:
    harness = make_harness(disk_kv_budget_bytes=2**26, usage_interval_s=0.01)
    c = harness.conversation()
    harness.say(c, "Hello")
    harness.saved(c)
    memory = harness.manager.memory_view(ADA)
    until(lambda: harness.manager.memory_view(ADA).history[-1].disk_bytes == memory.disk_used_bytes > 0)
    assert harness.manager.memory_view(ADA).history[-1].device_bytes == memory.device_used_bytes
    assert harness.manager.memory_view(ADA).history[0].device_bytes == 0
