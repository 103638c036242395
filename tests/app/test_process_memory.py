"""The memory of the process beyond weights and KVs: bounded, not growing, and reported correctly."""

from __future__ import annotations

import os
import random
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from app.page import memory_panel
from app.process_memory import ProcessMemory
from tests.app.cli.start_process import StartedProcess, ask, get
from tests.polling import pause

pytestmark = [pytest.mark.embedded, pytest.mark.timeout(1800)]

MB, MIB = 1_000_000, 1024 * 1024
BUDGET_BYTES = 24 * MIB
MOST_OTHER_BYTES = 150 * MB
CLIENTS, CONVERSATIONS = 8, 20
PROSE = (Path(__file__).parent.parent / "model_runtime" / "prose.txt").read_text(encoding="utf-8").split()


class Crowd:
    """Clients that continue any conversation while the process's memory is measured."""

    def __init__(self, url: str, pid: int, words: tuple[int, ...], tokens: int) -> None:
        self._url, self._words, self._tokens = url, words, tokens
        self._process = psutil.Process(pid)
        self._free = list(range(CONVERSATIONS))
        self._lock = threading.Lock()
        self._dice = random.Random(18)
        self._left = 0
        self.trouble: list[str] = []

    def send(self, requests: int) -> int:
        """Sends this many requests and returns the peak of resident bytes meanwhile."""
        self._left = requests
        clients = [threading.Thread(target=self._client) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        most_bytes = 0
        while any(client.is_alive() for client in clients):
            most_bytes = max(most_bytes, self._process.memory_info().rss)
            pause(0.05)
        assert not self.trouble
        return most_bytes

    def _client(self) -> None:
        while True:
            with self._lock:
                if not self._left:
                    return
                self._left -= 1
                number = self._free.pop(self._dice.randrange(len(self._free)))
                count = self._dice.choice(self._words)
                start = self._dice.randrange(len(PROSE) - count)
            try:
                text = f"{number} " + " ".join(PROSE[start : start + count])
                ask(self._url, f"conversation {number}", text, self._tokens)
            except OSError as error:
                self.trouble.append(repr(error))
            finally:
                with self._lock:
                    self._free.append(number)


@pytest.fixture
def served(embedded_cache: Path, tmp_path: Path) -> Iterator[StartedProcess]:
    flags = ["--device-kv-budget", "24MiB", "--headless"]
    process = StartedProcess(tmp_path, flags, dict(os.environ))
    yield process
    process.stop()
    assert "Traceback" not in process.printed


def shown(url: str) -> dict[str, float]:
    """The parts of the process's memory in `/metrics`, and the total as "resident"."""
    text = get(f"{url}/metrics").decode()
    found = {m[1]: float(m[2]) for m in re.finditer(r'keepwarm_process_memory_bytes\{part="(\w+)"\} (\S+)', text)}
    resident = re.search(r"^keepwarm_process_resident_bytes (\S+)", text, re.MULTILINE)
    assert resident is not None
    return found | {"resident": float(resident[1])}


def test_the_process_holds_little_beside_weights_and_budget(served: StartedProcess) -> None:
    """A short version of `test_two_hundred_requests`."""
    url = served.url()
    most_bytes = Crowd(url, served.process.pid, (20, 60), 4).send(24)
    parts = shown(url)
    assert sum(parts[name] for name in ("weights", "kv", "program", "other")) == parts["resident"]
    assert 0 < parts["kv"] <= BUDGET_BYTES
    assert parts["other"] < MOST_OTHER_BYTES
    assert most_bytes < parts["program"] + parts["weights"] + BUDGET_BYTES + MOST_OTHER_BYTES


@pytest.mark.long
def test_two_hundred_requests(served: StartedProcess) -> None:
    url = served.url()
    crowd = Crowd(url, served.process.pid, (20, 60, 200), 16)
    first = crowd.send(100)
    parts = shown(url)
    assert parts["other"] < MOST_OTHER_BYTES
    second = crowd.send(100)
    assert second < first + 32 * MIB
    assert second < parts["program"] + parts["weights"] + BUDGET_BYTES + MOST_OTHER_BYTES
    pause(15)  # small files become large ones, and the heap is tidied
    assert shown(url)["other"] < MOST_OTHER_BYTES


def test_the_panel_says_what_it_is_for() -> None:
    drawn = memory_panel.draw_process(ProcessMemory(690 * MIB, 420 * MIB, 120 * MIB, 24 * MIB))
    assert drawn["resident"] == "690.0 MiB"
    assert drawn["parts"] == "model 120.0 MiB · conversations 24.0 MiB · program 420.0 MiB · other 126.0 MiB"
    on_a_gpu = memory_panel.draw_process(ProcessMemory(3000 * MIB, 420 * MIB, 0, 0))
    assert on_a_gpu["parts"] == "program 420.0 MiB · other 2.5 GiB"
