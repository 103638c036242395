"""SIGTERM: nothing new begins, running answers finish or are stopped and marked, and memory is saved."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from sessions.config import SessionConfig
from sessions.manager import SessionManager
from sessions.store.store import Store
from sessions.types import MessageStatus, MessageView
from tests.app.conftest import MODEL, user
from tests.polling import until
from tests.sessions.byte_template import ByteTemplate
from tests.sessions.scripted_engine import ScriptedEngine

Start = Callable[[float, float], "Process"]


class Process:
    """A server that a signal ends."""

    def __init__(self, data_dir: Path, token_delay_s: float, limit_s: float) -> None:
        arguments = [str(data_dir), str(token_delay_s), str(limit_s)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.app.scripted_serve", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[-1]
        self.client = OpenAI(base_url=f"{self.url}/v1", api_key="unused", max_retries=0, timeout=30)

    def close(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    processes: list[Process] = []

    def run(token_delay_s: float, limit_s: float) -> Process:
        processes.append(Process(tmp_path / "data", token_delay_s, limit_s))
        return processes[-1]

    yield run
    for one in processes:
        one.close()


def stored(data_dir: Path) -> list[MessageView]:
    """The last answer of every conversation; checks that its whole KV was saved."""
    engine, store = ScriptedEngine(), Store(data_dir)
    manager = SessionManager(store, engine, ByteTemplate(), SessionConfig(device_kv_budget_bytes=2**26))
    views = [manager.view("local", c.conversation_id) for c in manager.list_conversations("local")]
    saved = store.segments.by_conversation("local")
    assert all(saved[v.summary.conversation_id].tokens == v.ledger_tokens - 1 for v in views)
    engine.close()
    store.close()
    return [view.messages[-1] for view in views]


def test_running_answers_finish_and_new_ones_are_told_to_wait(start: Start, tmp_path: Path) -> None:
    server = start(0.01, 20.0)
    stream = server.client.chat.completions.create(model=MODEL, messages=[user("Hello")], stream=True)  # type: ignore[list-item]
    next(iter(stream))
    server.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 5
    while httpx.get(f"{server.url}/health").status_code != 503:
        assert time.monotonic() < deadline
    assert httpx.get(f"{server.url}/health").json()["ready"] is False
    with pytest.raises(openai.InternalServerError) as refused:
        server.client.chat.completions.create(model=MODEL, messages=[user("New")])  # type: ignore[list-item]
    assert refused.value.status_code == 503
    assert refused.value.response.headers["Retry-After"] == "5"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert server.process.wait(20) == 0
    assert text == "word " * 40
    (answer,) = stored(tmp_path / "data")
    assert answer.status is MessageStatus.COMPLETE


def test_what_takes_too_long_is_stopped_and_marked(start: Start, tmp_path: Path) -> None:
    server = start(0.1, 0.5)
    outcomes: list[Any] = []

    def listen() -> None:
        try:
            stream = server.client.chat.completions.create(model=MODEL, messages=[user("Hello")], stream=True)  # type: ignore[list-item]
            for chunk in stream:
                outcomes.append(chunk.choices[0].delta.content)  # noqa: PERF401
        except openai.APIError as error:
            outcomes.append(error)

    thread = threading.Thread(target=listen)
    thread.start()
    until(lambda: outcomes)
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0
    assert time.monotonic() - began < 6
    thread.join(10)
    assert "cut short" in str(outcomes[-1])
    (answer,) = stored(tmp_path / "data")
    assert answer.status is MessageStatus.INTERRUPTED
    assert "".join(piece for piece in outcomes[:-1] if piece) == answer.text
