"""The thread behind every background worker."""

from __future__ import annotations

import threading

from sessions.worker import Worker


def test_a_worker_runs_until_its_loop_returns() -> None:
    told_to_end = threading.Event()
    names: list[str] = []

    def loop() -> None:
        names.append(threading.current_thread().name)
        told_to_end.wait()

    worker = Worker("test", loop)
    assert worker.close(0.0)  # never started
    worker.start()
    assert not worker.close(0.3)
    assert worker.is_alive
    told_to_end.set()
    assert worker.close(30.0)
    assert not worker.is_alive
    assert names == ["keepwarm-test"]
