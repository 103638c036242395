"""A real disk that fills up under a running server: streamed answers are kept and stored later, no turn begins that
cannot be stored, and every caller learns why. When there is space again, the server recovers by itself."""

from __future__ import annotations

import concurrent.futures
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sessions.store.store import Store
from sessions.types import MessageStatus
from tests.app.conftest import MODEL, user
from tests.polling import until
from tests.sessions.memory.saved.test_bad_disk import NAMESPACE, can_mount

ANSWER = "word " * 40
MIB = 1024 * 1024


class Server:
    """The scripted server, on a separate small disk if requested."""

    def __init__(self, data_dir: Path, on_small_disk: bool, token_delay_s: float) -> None:
        data_dir.mkdir()
        serve = [sys.executable, "-m", "tests.app.scripted_serve", str(data_dir), str(token_delay_s), "5"]
        mount = f"mount -t tmpfs -o size=4m,mode=700 none {data_dir} && exec "
        command = [*NAMESPACE, "sh", "-c", f'{mount} "$@"', "sh", *serve] if on_small_disk else serve
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[-1]
        # The disk is seen by the server alone, and through it.
        self.data = Path(f"/proc/{self.process.pid}/root{data_dir}") if on_small_disk else data_dir

    def health(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.url}/health", timeout=20).json()
        return found

    def ask(self, text: str, key: str) -> httpx.Response:
        body = {"model": MODEL, "messages": [user(text)], "prompt_cache_key": key}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=60)

    def stream(self, text: str, key: str) -> list[Any]:
        """The events, of which the last one is "[DONE]"."""
        body = {"model": MODEL, "messages": [user(text)], "prompt_cache_key": key, "stream": True}
        with httpx.stream("POST", f"{self.url}/v1/chat/completions", json=body, timeout=60) as response:
            lines = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]

    def close(self) -> str:
        """What the server logged."""
        self.process.terminate()
        logged = self.process.communicate(timeout=30)[1]
        return str(logged)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def run(on_small_disk: bool, token_delay_s: float = 0.01) -> Server:
        servers.append(Server(tmp_path / "data", on_small_disk, token_delay_s))
        return servers[-1]

    yield run
    for server in servers:
        if server.process.stdout is not None and not server.process.stdout.closed:
            server.process.kill()
            server.process.communicate()


def fill(folder: Path) -> Path:
    """Fills the disk until not one more byte fits."""
    filler = folder / "filler"
    descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT)
    size = 64 * 1024
    while size:
        try:
            os.write(descriptor, bytes(size))
        except OSError:
            size //= 2
    os.close(descriptor)
    return filler


def check_kept_answers(server: Server, take_away: Callable[[], Callable[[], None]], said: str) -> None:
    """`take_away` makes the disk refuse every write; what it returns undoes that."""
    assert server.ask("Before", "a").json()["keepwarm"]["stored"] is True
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        whole, streamed = pool.submit(server.ask, "Whole", "b"), pool.submit(server.stream, "Streamed", "c")
        until(lambda: server.health()["running"] == 2, 15.0)
        give_back = take_away()
        until(lambda: not server.health()["ready"], 4.0)
        answer, events = whole.result().json(), streamed.result()
    assert answer["choices"][0]["message"]["content"] == ANSWER.strip() + " "
    assert answer["keepwarm"]["stored"] is False
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in events[:-1]) == ANSWER
    assert (events[-1], events[-2]["keepwarm"]["stored"]) == ("[DONE]", False)

    kept = "2 answers are kept in memory and will be stored as soon as possible."
    until(lambda: server.health()["degraded"][1:] == [kept], 15.0)  # looked at again since the second one ended
    assert said in server.health()["degraded"][0]
    refused = server.ask("Refused", "d")
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
    assert said in refused.json()["error"]["message"]
    assert "keepwarm_can_store 0.0" in httpx.get(f"{server.url}/metrics").text

    give_back()
    until(lambda: server.health()["ready"], 4.0)
    assert server.health()["degraded"] == []
    assert server.ask("After", "e").json()["keepwarm"]["stored"] is True


def check_stored(data_dir: Path) -> None:
    """Every answer is stored with its receipt, and nothing that was refused."""
    store = Store(data_dir)
    try:
        paths = [store.messages.views(c.leaf_id) for c in store.every_conversation()]
    finally:
        store.close()
    asked = {path[0].text: path[-1] for path in paths}
    assert set(asked) == {"Before", "Whole", "Streamed", "After"}
    for answer in asked.values():
        assert (answer.text, answer.status, answer.note) == (ANSWER, MessageStatus.COMPLETE, "")
        assert answer.receipt is not None
        assert answer.receipt.sampled_tokens == len(ANSWER) + 1


def test_a_disk_that_fills_up(start: Callable[..., Server], tmp_path: Path) -> None:
    if not can_mount():
        pytest.skip("mounting in a user namespace is not allowed here")
    server = start(True)

    def full() -> Callable[[], None]:
        return fill(server.data).unlink

    check_kept_answers(server, full, "is full. Free some space")
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("keepwarm.db", "keepwarm.db-wal"):
        (copy / name).write_bytes((server.data / name).read_bytes())
    logged = server.close()
    check_stored(copy)
    assert "Traceback" not in logged
    assert logged.count("\n") < 200, logged


def test_a_disk_with_errors(start: Callable[..., Server], tmp_path: Path) -> None:
    """No file may grow: the kernel says EFBIG, which SQLite calls an I/O error."""
    server = start(False)

    def broken() -> Callable[[], None]:
        pid = server.process.pid
        limits = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, limits[1]))
        return lambda: resource.prlimit(pid, resource.RLIMIT_FSIZE, limits) and None

    check_kept_answers(server, broken, "cannot be used (File too large)")
    assert "Traceback" not in server.close()
    check_stored(tmp_path / "data")
