"""Fields that take more than one kind of value: whatever is sent there is answered or refused by name, and no 500."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from app.api.anthropic.requests import MessagesRequest
from app.api.ollama.requests import GenerateRequest, OllamaChatRequest
from app.api.openai_responses.requests import ResponsesRequest
from app.api.requests import ChatCompletionRequest
from app.api.text_completions.requests import TextCompletionRequest
from tests.app.api.conftest import ServeOnce
from tests.app.conftest import MODEL, user
from tests.app.site import Site
from tests.sessions.byte_template import ByteTemplate

FUNCTION = {"name": "f", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": FUNCTION}
PROTOCOLS: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "/v1/chat/completions": (ChatCompletionRequest, {"messages": [user("a")], "tools": [TOOL]}),
    "/v1/responses": (ResponsesRequest, {"input": "a", "tools": [{"type": "function", **FUNCTION}]}),
    "/v1/messages": (
        MessagesRequest,
        {"messages": [user("a")], "max_tokens": 9, "tools": [{"name": "f", "input_schema": {"type": "object"}}]},
    ),
    "/v1/completions": (TextCompletionRequest, {"prompt": "a"}),
    "/api/chat": (OllamaChatRequest, {"messages": [user("a")], "stream": False}),
    "/api/generate": (GenerateRequest, {"prompt": "a", "stream": False}),
}
SIMPLE: list[Any] = [5, -1.5, True, "", "x", [], [[]], [5], {}, {"x": {}}]
KNOWN = ("function", "tool", "allowed_tools", "json_schema", "json_object", "enabled")
KEYS = ("name", "function", "allowed_tools", "tools", "mode", "schema", "json_schema", "budget_tokens")
VALUES = [
    *SIMPLE,
    *({"type": value} for value in (*SIMPLE, *KNOWN)),
    *({"type": kind, key: value} for kind in KNOWN[:4] for key in KEYS for value in ([], ["a"], {}, {"name": []}, 5)),
    *({"edits": value} for value in SIMPLE),
    *({"effort": value, "format": value} for value in SIMPLE),
]
WORST: list[Any] = [
    [[]],
    {"type": []},
    {"type": {}},
    {"type": "tool", "name": {}},
    {"type": "allowed_tools", "tools": {}},
]


@pytest.fixture(scope="module")
def http(serve_once: ServeOnce) -> Iterator[httpx.Client]:
    site: Site = serve_once(template=ByteTemplate(takes_tools=True, has_thoughts=True, variables=("enable_thinking",)))
    with httpx.Client(base_url=site.url, timeout=30) as client:
        yield client


def wide(shape: type[BaseModel]) -> list[str]:
    return [
        name
        for name, field in shape.model_fields.items()
        if "Any" in str(field.annotation) and name not in ("messages", "tools", "stream", "model")
    ]


@pytest.mark.parametrize("values", [WORST, pytest.param(VALUES, marks=pytest.mark.long)], ids=["worst", "all"])
@pytest.mark.parametrize("path", PROTOCOLS)
def test_no_value_is_an_error_of_the_server(http: httpx.Client, path: str, values: list[Any]) -> None:
    shape, usual = PROTOCOLS[path]
    fields = wide(shape)
    assert fields
    for field in fields:
        for value in values:
            answered = http.post(path, json={"model": MODEL, **usual, field: value})
            assert answered.status_code in (200, 400, 404), f"{field}: {value}: {answered.text}"
            if answered.status_code != 200:
                assert answered.json()["error"], f"{field}: {value}"
