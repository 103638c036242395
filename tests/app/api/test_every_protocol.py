"""What holds for every protocol alike: the line of open requests, who has gone, the log, and the numbers."""

from __future__ import annotations

import json
import logging
from typing import Any

import httpx
import pytest

from tests.app.conftest import MODEL, Serve, user
from tests.polling import until

PROTOCOLS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [user("long")]},
    "/v1/completions": {"prompt": "long"},
    "/v1/messages": {"messages": [user("long")], "max_tokens": 5_000},
    "/v1/responses": {"input": "long"},
    "/api/chat": {"messages": [user("long")]},
    "/api/generate": {"prompt": "long"},
}


def sentence(refused: httpx.Response) -> str:
    error = refused.json()["error"]
    return str(error if isinstance(error, str) else error["message"])


@pytest.mark.parametrize("path", list(PROTOCOLS))
def test_one_line_holds_the_requests_of_all(serve: Serve, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr("app.api.line.MOST_OPEN", 1)
    monkeypatch.setattr("app.api.line.PATIENCE_S", 0.05)
    site = serve(headless=True, token_delay_s=0.01)
    body = {"model": MODEL, "stream": True, **PROTOCOLS[path]}
    with httpx.Client(base_url=site.url, timeout=30) as http, http.stream("POST", path, json=body) as streamed:
        lines = streamed.iter_lines()
        next(lines)
        for other, asked in PROTOCOLS.items():
            refused = http.post(other, json={"model": MODEL, **asked})
            assert refused.status_code == 429, other
            assert "already open" in sentence(refused)
            assert refused.headers["retry-after"]
        asked_by = {"/tokenize": {"prompt": "a"}, "/v1/responses/input_tokens": {"input": "a"}}
        for other in ("/tokenize", "/v1/messages/count_tokens", "/v1/responses/input_tokens"):
            more = asked_by.get(other, {"messages": [user("a")]})
            assert http.post(other, json=more | {"model": MODEL}).status_code == 429


@pytest.mark.parametrize("path", list(PROTOCOLS))
def test_an_answer_ends_when_its_client_has_gone(serve: Serve, path: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "app.api")
    site = serve(headless=True, token_delay_s=0.01)
    body = {"model": MODEL, "stream": True, **PROTOCOLS[path]}
    with httpx.Client(base_url=site.url, timeout=30) as http:
        with http.stream("POST", path, json=body) as streamed:
            lines = streamed.iter_lines()
            next(lines)
            until(lambda: site.manager.open_answers()[0] == 1)
        until(lambda: site.manager.open_answers() == (0, 0))
        until(lambda: "status=gone" in caplog.text)
        assert "long" not in caplog.text.replace("along", "")
        label = path.removeprefix("/v1")
        until(lambda: f'path="{label}",status="200"' in http.get("/metrics").text)


def test_a_server_that_drains_says_so_in_every_shape(serve: Serve) -> None:
    site = serve(headless=True)
    site.manager.drain()
    with httpx.Client(base_url=site.url, timeout=30) as http:
        for path, asked in PROTOCOLS.items():
            refused = http.post(path, json={"model": MODEL, **asked})
            assert refused.status_code == 503, path
            assert "shutting down" in sentence(refused)
            shape = {"/v1/messages": {"type", "error", "request_id"}}.get(path, {"error"})
            assert set(json.loads(refused.text)) == shape
