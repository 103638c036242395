"""`keepwarm serve --engine`: the whole server over HTTP, with a scripted engine elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.budgets import Budgets
from app.server.listen import bind
from app.server.uvicorn_server import Server
from app.wiring import ServiceSettings, open_services
from model_runtime.interface.config import ModelConfig, RemoteConfig
from tests.app.site import app_in_a_loop
from tests.model_runtime.remote.scripted_dialects import LlamaCppScript
from tests.model_runtime.remote.scripted_server import ScriptedServer, byte_level
from tests.polling import until

MODEL = "tiny"


@pytest.fixture
def engine() -> Iterator[ScriptedServer]:
    server = ScriptedServer(LlamaCppScript())
    yield server
    server.close()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def http(engine: ScriptedServer, tmp_path: Path, said: list[str]) -> Iterator[httpx.Client]:
    byte_level().save_pretrained(tmp_path / "tokenizer")
    remote = RemoteConfig((engine.address,), model=MODEL, tokenizer=str(tmp_path / "tokenizer"))
    settings = ServiceSettings(tmp_path / "data", ModelConfig(), Budgets(None, None), remote=remote)
    listener, ready = bind("127.0.0.1", 0), threading.Event()
    with listener, open_services(settings, said.append) as services:
        server = Server(app_in_a_loop(services, True), 2, ready.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        assert ready.wait(30)
        with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=30) as client:
            yield client
        server.should_exit = True
        thread.join(10)


def chat(http: httpx.Client, *texts: str, **more: Any) -> httpx.Response:
    messages = [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(texts)]
    return http.post("/v1/chat/completions", json={"model": MODEL, "messages": messages, **more})


def test_turns_receipts_and_usage(engine: ScriptedServer, http: httpx.Client, said: list[str]) -> None:
    first = chat(http, "Hello").json()
    answer = first["choices"][0]["message"]["content"]
    second = chat(http, "Hello", answer, "And more?").json()
    kept = second["keepwarm"]
    assert kept["tier_before"] == "engine"
    assert kept["fed"] + kept["reused"] == second["usage"]["prompt_tokens"]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == kept["reused"] > 0
    engine.reports_reuse = False
    third = chat(http, "Hello", answer, "And more?", "x", "Again.").json()
    assert third["usage"]["prompt_tokens_details"]["cached_tokens"] is None
    assert (third["keepwarm"]["fed"], third["keepwarm"]["reused"], third["keepwarm"]["miss_reason"]) == (None,) * 3
    assert any(sentence.startswith(f"Model {MODEL}, at {engine.address}") for sentence in said)


def test_memory_is_shown_and_left_alone(engine: ScriptedServer, http: httpx.Client) -> None:
    session_id = chat(http, "Hello").json()["keepwarm"]["session_id"]
    (found,) = http.get("/v1/sessions").json()["data"]
    assert found["tier"] == "engine"
    assert found["engine"]["tokens"] == found["tokens"] - 1
    assert not any(found["device"].values())
    for act in ("pin", "unpin", "park", "warm", "drop", "verify"):
        refused = http.post(f"/v1/sessions/{session_id}/{act}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "memory_is_elsewhere"), act
    assert http.delete(f"/v1/sessions/{session_id}").json()["deleted"]


@pytest.mark.parametrize(
    ("setting", "code"),
    [
        ({"presence_penalty": 1.0}, "unsupported_by_engine"),
        ({"min_tokens": 4}, "unsupported_by_engine"),
        ({"response_format": {"type": "json_object"}}, "unsupported_parameter"),
    ],
)
def test_what_the_engine_lacks_is_refused(
    engine: ScriptedServer, http: httpx.Client, setting: dict[str, Any], code: str
) -> None:
    before = len(engine.asked)
    refused = chat(http, "Hello", **setting)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, code)
    assert len(engine.asked) == before
    assert http.get("/v1/sessions").json()["data"] == []


def test_an_answer_that_breaks_off_is_told_and_kept(engine: ScriptedServer, http: httpx.Client) -> None:
    engine.breaks_after = 3
    refused = chat(http, "Hello")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "interrupted")
    assert "broke the connection" in refused.json()["error"]["message"]
    with http.stream("POST", "/v1/chat/completions", json=streamed("Hello, too")) as response:
        events = [line for line in response.iter_lines() if line.startswith("data: ")]
    assert events[-1] == "data: [DONE]"
    assert "broke the connection" in events[-2]
    assert len(http.get("/v1/sessions").json()["data"]) == 2


def streamed(text: str) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "stream": True}


def test_health_and_metrics_know(engine: ScriptedServer, http: httpx.Client) -> None:
    chat(http, "Hello")
    health = http.get("/health").json()
    assert health["ready"]
    assert health["servers"] == [{"address": engine.address, "well": True, "trouble": ""}]
    assert metric(http, "keepwarm_engine_up") == 1
    assert metric(http, "keepwarm_engine_requests_total") == 1
    engine.kill()
    until(lambda: http.get("/health").status_code == 503)
    health = http.get("/health").json()
    assert (health["engine"], health["servers"][0]["well"]) == ("not answering", False)
    assert "cannot be reached" in health["degraded"][0]
    assert metric(http, "keepwarm_engine_up") == 0
    assert chat(http, "Hello?").status_code == 500
    assert metric(http, "keepwarm_engine_failures_total") >= 1


def metric(http: httpx.Client, name: str) -> float:
    lines = http.get("/metrics").text.splitlines()
    return float(next(line.rpartition(" ")[2] for line in lines if line.startswith(f"{name}{{")))
