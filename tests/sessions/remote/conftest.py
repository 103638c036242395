"""A session manager on remote engines with scripted servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from model_runtime.text.chat_template import ChatTemplate
from tests.model_runtime.remote.remote_harness import Start, connected, scripted_servers, tiny_texts
from tests.model_runtime.remote.scripted_server import ScriptedServer
from tests.sessions.session_harness import SessionHarness

Open = Callable[..., SessionHarness]


@pytest.fixture
def start() -> Iterator[Start]:
    yield from scripted_servers()


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
