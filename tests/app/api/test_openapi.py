"""schemathesis over the OpenAPI document, and requests that no schema generates: never a 500."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance

from tests.app.conftest import MODEL, Serve, user
from tests.app.site import Site

NAMED = ("responses/{response_id}", "conversations/{conversation_id}")
OPERATIONS = {
    "POST /chat/completions",
    *(f"POST /{name}" for name in ("completions", "tokenize", "detokenize", "embeddings")),
    "POST /responses",
    "GET /responses/{response_id}/input_items",
    "POST /responses/{response_id}/cancel",
    "GET /conversations/{conversation_id}/items",
    "POST /conversations",
    "POST /conversations/{conversation_id}",
    "POST /conversations/{conversation_id}/items",
    "GET /conversations/{conversation_id}/items/{item_id}",
    "DELETE /conversations/{conversation_id}/items/{item_id}",
    *(f"{method} /{path}" for method in ("GET", "DELETE") for path in NAMED),
    "POST /responses/input_tokens",
    "POST /messages",
    "POST /messages/count_tokens",
    "GET /models",
    "GET /models/{model}",
    "GET /sessions",
    "GET /sessions/{session_id}",
    "DELETE /sessions/{session_id}",
    *(f"POST /sessions/{{session_id}}/{name}" for name in ("pin", "unpin", "park", "warm", "drop", "verify")),
}


@pytest.fixture
def document(serve: Serve) -> Any:
    """The served document, with the model's name and a known session among the examples."""
    site = serve(headless=True)
    with httpx.Client(base_url=site.url) as http:
        raw = http.get("/v1/openapi.json").json()
        made = http.post("/v1/chat/completions", json={"model": MODEL, "messages": [user("Hello")]}).json()
    found = {f"{method.upper()} {path}" for path, methods in raw["paths"].items() for method in methods}
    assert found == OPERATIONS
    for name, schema in raw["components"]["schemas"].items():
        if name.endswith("Request") and "model" in schema.get("properties", {}):
            schema["properties"]["model"] = {"const": MODEL}
    for path, methods in raw["paths"].items():
        for operation in methods.values():
            for parameter in operation.get("parameters", []):
                if parameter["name"] == "session_id" and not path.endswith("{session_id}"):
                    parameter["schema"] = {"enum": [made["keepwarm"]["session_id"], "0" * 32]}
    loaded = schemathesis.openapi.from_dict(raw)
    loaded.config.update(base_url=f"{site.url}/v1")
    return loaded


def test_no_request_makes_a_500(document: Any) -> None:
    """Calls each operation with values that its schema allows; the responses match the document too."""
    for found in document.get_all_operations():
        operation = found.ok()

        @settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy())
        def hold(case: Any) -> None:
            case.validate_response(case.call(), checks=[not_a_server_error, response_schema_conformance])

        hold()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"model": NaN}',
        json.dumps({"model": MODEL, "messages": "Hello"}).encode(),
        json.dumps({"model": MODEL, "messages": []}).encode(),
        json.dumps({"model": MODEL, "messages": [{"role": "robot", "content": "x"}]}).encode(),
        json.dumps({"model": MODEL, "messages": [{"role": "user"}]}).encode(),
        json.dumps({"model": MODEL, "messages": [{"role": "user", "content": 5}]}).encode(),
        json.dumps({"model": MODEL, "messages": [user("x")], "temperature": "0.5"}).encode(),
        json.dumps({"model": MODEL, "messages": [user("x")], "max_tokens": 1.5}).encode(),
        json.dumps({"model": MODEL, "messages": [user("x")], "seed": 10**40}).encode(),
        json.dumps({"model": MODEL, "messages": [user("x")], "stop": [""]}).encode(),
        json.dumps(
            {"model": MODEL, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}
        ).encode(),
        json.dumps({"model": MODEL, "messages": [{"role": "assistant", "content": "y"}]}).encode(),
        json.dumps({"messages": [user("x")]}).encode(),
        json.dumps({"model": MODEL, "messages": [user("x")], "max_tokens": 0}).encode(),
        json.dumps({"model": MODEL, "messages": [user("x")], "logit_bias": {"x": 1}}).encode(),
        json.dumps({"model": MODEL, "messages": [{"role": "tool", "content": "y"}]}).encode(),
    ],
)
def test_malformed_requests_are_400_in_openais_shape(http: httpx.Client, body: bytes) -> None:
    refused = http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert refused.status_code == 400
    assert set(refused.json()["error"]) == {"message", "type", "param", "code"}
    assert refused.json()["error"]["type"] == "invalid_request_error"
    assert "Traceback" not in refused.text


def test_ten_thousand_messages_are_refused_quickly_and_nothing_is_kept(site: Site, http: httpx.Client) -> None:
    many = [user("hello") if n % 2 == 0 else {"role": "assistant", "content": "hi"} for n in range(10_001)]
    refused = http.post("/v1/chat/completions", json={"model": MODEL, "messages": many})
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert refused.elapsed.total_seconds() < 5
    assert site.manager.list_conversations("local") == []


def test_ten_thousand_messages_that_fit_are_answered_and_recognised(serve: Serve) -> None:
    site = serve(headless=True, context_limit_tokens=100_000, bytes_per_token=16)
    many = [user("h") if n % 2 == 0 else {"role": "assistant", "content": "i"} for n in range(9_999)]
    with httpx.Client(base_url=site.url, timeout=60) as http:
        first = http.post("/v1/chat/completions", json={"model": MODEL, "messages": many}).json()
        many += [{"role": "assistant", "content": first["choices"][0]["message"]["content"]}, user("And?")]
        second = http.post("/v1/chat/completions", json={"model": MODEL, "messages": many}).json()
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached == first["usage"]["total_tokens"] - 1


def test_huge_bodies_are_a_413_whether_they_say_their_length_or_not(http: httpx.Client) -> None:
    piece = b"x" * 2**20
    for body in (piece * 33, iter([piece] * 33)):
        try:
            refused = http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
        except httpx.WriteError:  # refused by its length alone, and the connection closed before it was all sent
            continue
        assert refused.status_code == 413
        assert refused.json()["error"]["message"]
    large = {"model": MODEL, "messages": [user("x" * 5 * 2**20)]}
    assert http.post("/v1/chat/completions", json=large).status_code == 400


def test_unknown_addresses_and_methods_are_in_openais_shape(http: httpx.Client) -> None:
    for method, path, status in (
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/chat/completions", 405),
        ("PUT", "/v1/x/y", 404),
    ):
        refused = http.request(method, path)
        assert refused.status_code == status
        assert refused.json()["error"]["message"]
