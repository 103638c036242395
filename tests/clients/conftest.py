"""A real server with the embedded model, which all clients share, and what a tool loop asks of any of them.

It runs in the clients' own environment: nothing of Keepwarm is imported here.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

KEEPWARM = os.environ.get("KEEPWARM", "keepwarm")
STARTS_WITHIN_S = 300
TURNS = 10
CITIES = ("Oslo", "Bergen", "Tromso")
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": list(CITIES)}},
    "required": ["city"],
    "additionalProperties": False,
}
FORECAST = "The weather in Oslo as JSON: city and degrees."
QUESTION = "What is the weather in Oslo, Bergen and Tromso? Use the tool."


LOOPS: pytest.StashKey[list[tuple[str, Loop]]] = pytest.StashKey()
FED = re.compile(r'^keepwarm_tokens_total\{kind="fed"\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Server:
    """`url` without a slash at the end; `model` is the served name."""

    url: str
    model: str

    def fed_tokens(self) -> int:
        """What all turns so far have fed: for clients that do not show a response's own fields."""
        with urllib.request.urlopen(f"{self.url}/metrics") as found:
            counted = FED.search(found.read().decode())
        return int(float(counted.group(1))) if counted else 0


@dataclass(slots=True)
class Loop:
    """Holds each turn of a conversation against the one before: it may feed the last token that was sampled and what
    the turn added, and nothing else."""

    total: int = 0
    turns: int = 0
    fed: int = 0
    delta: int = 0
    prompts: int = 0

    def turn(self, prompt_tokens: int, sampled_tokens: int, fed_tokens: int, miss_reason: str | None = None) -> None:
        assert miss_reason is None
        added = prompt_tokens - self.total + (1 if self.turns else 0)
        assert fed_tokens <= added, f"turn {self.turns}: {fed_tokens} fed, {added} added"
        self.total, self.turns = prompt_tokens + sampled_tokens, self.turns + 1
        self.fed, self.delta, self.prompts = self.fed + fed_tokens, self.delta + added, self.prompts + prompt_tokens


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, log = f"http://127.0.0.1:{port}", Path(directory) / "log"
    command = [KEEPWARM, "serve", "--headless", "--port", str(port), "--data-dir", str(directory / "data")]
    with log.open("w") as written:
        process = subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT)
        try:
            until = time.monotonic() + STARTS_WITHIN_S
            while not _is_ready(url):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.5)
            with urllib.request.urlopen(f"{url}/v1/models") as listed:
                model = json.load(listed)["data"][0]["id"]
            yield Server(url, model)
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture
def loop(request: pytest.FixtureRequest) -> Iterator[Loop]:
    held = Loop()
    yield held
    request.config.stash.setdefault(LOOPS, []).append((request.node.nodeid.partition("clients/")[2], held))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What each conversation cost, for docs/clients.md."""
    for name, held in config.stash.get(LOOPS, []):
        line = f"{held.turns} turns, {held.fed} of {held.prompts} prompt tokens fed, {held.delta} added"
        terminalreporter.write_line(f"{name}: {line}")


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as found:
            return bool(json.load(found)["ready"])
    except OSError:
        return False
