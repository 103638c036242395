"""A session manager on remote engines with scripted servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from model_runtime.text.chat_template import ChatTemplate
from tests.model_runtime.remote.remote_harness import connected, tiny_texts
from tests.model_runtime.remote.scripted_dialects import LlamaCppScript
from tests.model_runtime.remote.scripted_server import ScriptedServer
from tests.sessions.session_harness import SessionHarness

Start = Callable[..., ScriptedServer]
Open = Callable[..., SessionHarness]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[ScriptedServer] = []

    def new(dialect: Any = None, **settings: Any) -> ScriptedServer:
        started.append(ScriptedServer(dialect or LlamaCppScript(), **settings))
        return started[-1]

    yield new
    for server in started:
        server.close()


@pytest.fixture
def server(start: Start) -> ScriptedServer:
    return start()


@pytest.fixture
def open_on(tmp_path: Path) -> Iterator[Open]:
    """A manager on these servers; the second one takes the first one's data."""
    opened: list[SessionHarness] = []

    def new(*servers: ScriptedServer, **config: Any) -> SessionHarness:
        texts = tiny_texts()
        engine: Any = connected(*servers, texts=texts, silence_s=config.pop("silence_s", 300.0))
        template: Any = ChatTemplate(texts.tokenizer, texts.stop_token_ids)
        opened.append(SessionHarness(tmp_path, engine, template, budget_bytes=1, **config))
        return opened[-1]

    yield new
    for harness in opened:
        harness.close()
