"""A process that is stopped and continues, or gets almost no processor, has not lost its engine; one that hangs has."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from model_runtime.engine.inbox import GIVEN_UP
from tests.app.conftest import user
from tests.conftest import TinyDir
from tests.polling import pause, until

STEP_S, HANG_AFTER_S = 0.03, 1.5  # beside other tests a step may wait for a processor
ANSWERS, TOKENS = 3, 150
Start = Callable[[float, float], "Process"]


class Process:
    def __init__(self, model_dir: Path, data_dir: Path, log: Path, step_s: float, hang_after_s: float) -> None:
        arguments = [str(model_dir), str(data_dir), str(step_s), str(hang_after_s)]
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.app.real_serve", *arguments],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "2"},
            )
        self.log = log
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[-1]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def health(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.url}/health", timeout=20).json()
        return found

    def ask(self, number: int) -> dict[str, Any]:
        body = {
            "model": self.health()["model"],
            "messages": [user(f"Tell me about river number {number}.")],
            "max_tokens": TOKENS,
            "temperature": 0,
        }
        answered: dict[str, Any] = httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=200).json()
        return answered

    def is_at_work(self, count: int) -> bool:
        return bool(self.health()["running"] >= count)

    def close(self) -> None:
        self.signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def start(tiny_dir: TinyDir, tmp_path: Path) -> Iterator[Start]:
    processes: list[Process] = []

    def run(step_s: float = STEP_S, hang_after_s: float = HANG_AFTER_S) -> Process:
        processes.append(Process(tiny_dir("llama"), tmp_path / "data", tmp_path / "log", step_s, hang_after_s))
        return processes[-1]

    yield run
    for one in processes:
        one.close()


def answers_during(server: Process, disturb: Callable[[], None]) -> list[dict[str, Any]]:
    """The answers that run while `disturb` runs."""
    with concurrent.futures.ThreadPoolExecutor(ANSWERS) as pool:
        asked = [pool.submit(server.ask, number) for number in range(ANSWERS)]
        until(lambda: server.is_at_work(ANSWERS), 60.0)
        disturb()
        return [one.result() for one in asked]


def stop_for(server: Process, seconds: float) -> None:
    server.signal(signal.SIGSTOP)
    pause(seconds)
    server.signal(signal.SIGCONT)


def check_whole(server: Process, answers: list[dict[str, Any]]) -> None:
    for answer in answers:
        assert "choices" in answer, answer
        assert answer["usage"]["completion_tokens"] > 0
    health = server.health()
    assert (health["ready"], health["engine"]) == (True, "running")
    assert "engine_given_up" not in server.log.read_text()


def test_a_stopped_process_goes_on_with_its_answers_and_a_hang_is_noticed(start: Start) -> None:
    server = start(STEP_S, HANG_AFTER_S)
    check_whole(server, answers_during(server, lambda: stop_for(server, 3.0)))

    def starve() -> None:
        for _ in range(12):  # awake for 20 ms of every 320
            server.signal(signal.SIGSTOP)
            pause(0.3)
            server.signal(signal.SIGCONT)
            pause(0.02)

    check_whole(server, answers_during(server, starve))

    server.signal(signal.SIGUSR1)  # it hangs, and is stopped in the middle of that
    failed = answers_during(server, lambda: stop_for(server, 2.0))
    assert {answer["error"]["message"] for answer in failed} == {GIVEN_UP}
    until(lambda: server.health()["ready"], 60.0)
    assert "choices" in server.ask(9)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_75_seconds_of_being_stopped(start: Start) -> None:
    """With the watchdog's default limits."""
    server = start(STEP_S, 60.0)
    check_whole(server, answers_during(server, lambda: stop_for(server, 75.0)))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_machine_whose_processors_are_all_taken(start: Start) -> None:
    """Eight busy processes per core beside a low-priority server: it is slow but does not hang."""
    server = start(0.0, HANG_AFTER_S)
    os.setpriority(os.PRIO_PROCESS, server.process.pid, 19)
    burn = "import time\nend = time.monotonic() + 20\nwhile time.monotonic() < end: pass"
    busy = [subprocess.Popen([sys.executable, "-c", burn]) for _ in range(8 * (os.cpu_count() or 1))]
    try:
        check_whole(server, answers_during(server, lambda: None))
    finally:
        for one in busy:
            one.kill()
            one.wait()
