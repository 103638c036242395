"""Whatever a server sends, an answer has one end, and its ids are a beginning of those that arrived."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_runtime.interface.events import Finished, FinishReason, TokenDelta
from model_runtime.remote import generation
from model_runtime.remote.engine import RemoteEngine
from tests.model_runtime.remote.conftest import Connect
from tests.model_runtime.remote.remote_harness import GREEDY, ask
from tests.model_runtime.remote.scripted_server import ScriptedServer

LEDGER = tuple(range(40, 60))
VOCABULARY = 410
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**40) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
counts = st.one_of(*[st.integers(-5, 50)] * 8, json_values)
ids = st.lists(st.integers(0, VOCABULARY - 1), max_size=3)
token_events = st.builds(lambda tokens: {"content": "x", "tokens": tokens, "stop": False}, ids)
progress_events = st.builds(
    lambda cache, processed: {"prompt_progress": {"cache": cache, "processed": processed}, "tokens": [0]},
    counts,
    counts,
)
last_events = st.builds(
    lambda kind, tokens, cached: {"stop": True, "stop_type": kind, "tokens": tokens, "timings": {"cache_n": cached}},
    st.sampled_from(["eos", "limit", "word", "none", ""]) | json_values,
    ids | json_values,
    counts,
)
odd_events = st.dictionaries(
    st.sampled_from(["tokens", "content", "stop", "stop_type", "timings", "prompt_progress", "error", "model"]),
    json_values,
    max_size=4,
)


def line(event: Any) -> bytes:
    return b"data: " + json.dumps(event).encode() + b"\n\n"


noise = st.sampled_from([b": ping\n\n", b"\n", b"event: x\n", b"data: [DONE]\n\n", b"data:\n"]) | st.binary(max_size=12)
# Most streams have to get as far as an answer's ids, or nothing would be tried but their first lines.
lines = st.one_of(
    *[events.map(line) for events in (token_events, progress_events) * 3 + (last_events, odd_events)], noise
)


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "AWAY_PATIENCE_S", 0.0)
    monkeypatch.setattr(generation, "BUSY_PATIENCE_S", 0.0)
    monkeypatch.setattr(generation, "LAST_EVENT_S", 0.2)


@pytest.fixture
def engine(server: ScriptedServer, connect: Connect) -> RemoteEngine:
    return connect(server)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sent=st.lists(lines, max_size=8), stop=st.sampled_from([(), ("a",), ("the ",)]))
def test_any_stream(engine: RemoteEngine, server: ScriptedServer, sent: list[bytes], stop: tuple[str, ...]) -> None:
    server.sends_instead = None
    assert ask(engine, LEDGER).end.reason is FinishReason.STOP, "whatever came before"
    server.sends_instead = b"".join(sent)
    asked = ask(engine, LEDGER, replace(GREEDY, stop_strings=stop))
    end = asked.end
    assert [isinstance(event, Finished) for event in asked.events].count(True) == 1
    assert asked.ids == arrived(sent)[: len(asked.ids)]
    assert end.sampled_tokens == len(asked.ids)
    assert 0 <= end.cut_tokens <= len(asked.ids)
    if end.is_reuse_reported and (asked.ids or end.fed_tokens):  # an engine may read all and write nothing
        assert end.fed_tokens + end.reused_tokens == len(LEDGER)
        assert end.reused_tokens >= 0
        assert end.fed_tokens >= 0
    else:
        assert (end.fed_tokens, end.reused_tokens) == (0, 0)
    if end.reason in (FinishReason.FAILED, FinishReason.LOST):
        assert end.error
        assert (end.reason is FinishReason.LOST) == bool(asked.ids)
    shown = "".join(event.text for event in asked.events if isinstance(event, TokenDelta)) + end.text_tail
    assert not any(one in shown for one in stop)
    assert engine.pulse().is_alive


def arrived(sent: list[bytes]) -> list[int]:
    """The ids of all well-formed events, in order."""
    found: list[int] = []
    for part in b"".join(sent).split(b"\n"):
        name, _, data = part.strip().partition(b":")
        if name != b"data":
            continue
        try:
            event = json.loads(data)
        except ValueError:
            continue
        if isinstance(event, dict) and not isinstance(event.get("prompt_progress"), dict):
            tokens = event.get("tokens")
            if isinstance(tokens, list) and all(type(one) is int for one in tokens):
                found += tokens
    return found
