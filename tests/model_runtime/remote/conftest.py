"""Scripted servers, engines on them, and the tokenizer that both share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from model_runtime.remote.engine import RemoteEngine
from tests.model_runtime.remote.remote_harness import Start, connected, scripted_servers, tiny_texts
from tests.model_runtime.remote.scripted_server import ScriptedServer

Connect = Callable[..., RemoteEngine]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts scripted servers, llama.cpp's unless another dialect is given."""
    yield from scripted_servers()


@pytest.fixture
def server(start: Start) -> ScriptedServer:
    return start()


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Engines on these servers."""
    engines: list[RemoteEngine] = []

    def new(*servers: ScriptedServer, **settings: Any) -> RemoteEngine:
        engines.append(connected(*servers, texts=settings.pop("texts", None) or tiny_texts(), **settings))
        return engines[-1]

    yield new
    for engine in engines:
        engine.close()
