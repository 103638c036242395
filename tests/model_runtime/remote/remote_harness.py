"""What tests of remote engines share: tiny texts, an engine on scripted servers, and answers as lists of events."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from transformers import PreTrainedTokenizerFast

from model_runtime.interface.config import RemoteConfig
from model_runtime.interface.events import Event, Finished, TokenDelta
from model_runtime.interface.protocol import GenerationRequest
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.remote.engine import RemoteEngine
from model_runtime.remote.generation import RemoteGeneration
from model_runtime.remote.texts import RemoteTexts
from tests.model_runtime.remote.scripted_dialects import LlamaCppScript
from tests.model_runtime.remote.scripted_server import ScriptedServer, byte_level
from tests.model_runtime.tiny_tokenizers import wrapped

Start = Callable[..., ScriptedServer]
PATIENCE_S = 20.0  # for each event
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=64)


def scripted_servers() -> Iterator[Start]:
    """What starts scripted servers, llama.cpp's unless another dialect is given; they are closed at the end."""
    started: list[ScriptedServer] = []

    def new(dialect: Any = None, **settings: Any) -> ScriptedServer:
        started.append(ScriptedServer(dialect or LlamaCppScript(), **settings))
        return started[-1]

    yield new
    for server in started:
        server.close()


@cache
def tiny_texts(family: str = "byte-level") -> RemoteTexts:
    """The tokenizer that scripted servers have."""
    return texts_of(byte_level() if family == "byte-level" else wrapped(family), family)


def texts_of(tokenizer: PreTrainedTokenizerFast, fingerprint: str) -> RemoteTexts:
    end = tokenizer.eos_token_id
    assert isinstance(end, int)
    return RemoteTexts(tokenizer, "Tiny", frozenset({end}), (), SamplingParams(temperature=0.0), fingerprint)


def connected(
    *servers: ScriptedServer, texts: RemoteTexts, said: list[str] | None = None, **config: Any
) -> RemoteEngine:
    say = (lambda sentence: None) if said is None else said.append
    return RemoteEngine(RemoteConfig(tuple(server.address for server in servers), **config), texts, say)


class Asked:
    """A generation and its events."""

    def __init__(self, engine: RemoteEngine, ledger: tuple[int, ...], sampling: SamplingParams, **more: Any) -> None:
        self.events: list[Event] = []
        self._queue: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.kv = more.pop("kv", None) or engine.new_kv()
        request = GenerationRequest(ledger, self.kv, sampling, **more)
        self.generation: RemoteGeneration = engine.submit(request, self._queue.put)

    def next(self) -> Event:
        self.events.append(self._queue.get(timeout=PATIENCE_S))
        return self.events[-1]

    def until_token(self, count: int = 1) -> None:
        while len(self.ids) < count:
            self.next()

    @property
    def end(self) -> Finished:
        while not (self.events and isinstance(self.events[-1], Finished)):
            self.next()
        assert isinstance(self.events[-1], Finished)
        return self.events[-1]

    @property
    def ids(self) -> list[int]:
        return [event.token_id for event in self.events if isinstance(event, TokenDelta)]

    @property
    def text(self) -> str:
        shown = "".join(event.text for event in self.events if isinstance(event, TokenDelta))
        return shown + (self.events[-1].text_tail if isinstance(self.events[-1], Finished) else "")


def ask(engine: RemoteEngine, ledger: tuple[int, ...], sampling: SamplingParams = GREEDY, **more: Any) -> Asked:
    """A finished answer."""
    asked = Asked(engine, ledger, sampling, **more)
    assert asked.end
    return asked
