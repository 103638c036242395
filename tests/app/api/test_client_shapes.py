"""Requests in the shapes in which programs send them (recorded on 2026-11-30, written anew): each is answered, and a
chat's second turn feeds only what is new."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.app.api.conftest import ServeOnce
from tests.app.conftest import LOCAL, MODEL, assistant, user
from tests.app.site import Site
from tests.sessions.byte_template import ByteTemplate

DRAFT_7 = "http://json-schema.org/draft-07/schema#"
CITY: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CLOSED_CITY = {**CITY, "additionalProperties": False}
STREAMED = {"stream": True, "stream_options": {"include_usage": True}}
CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
JSON = {"content-type": "application/json"}


def tool(parameters: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    function = {"name": "weather", "description": "d", "parameters": parameters, **more}
    return {"type": "function", "function": function}


def form(schema: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, **more}}}


def text(said: str, kind: str = "text") -> list[dict[str, str]]:
    return [{"type": kind, "text": said}]


@dataclass(frozen=True)
class Shape:
    """`goes_on`: as a chat whose client sends the answer back as it came."""

    path: str
    body: dict[str, Any]
    ignored: tuple[str, ...] = ()
    headers: dict[str, str] = field(default_factory=lambda: JSON)
    goes_on: bool = True


SYSTEM = {"role": "system", "content": text("You solve tasks.")}
TASK = {"role": "user", "content": text("New task")}
FILES = [user("These files are in the chat"), assistant("Ok.")]
COUNT = {"$schema": DRAFT_7, **CLOSED_CITY, "properties": {"city": {"type": "integer", "minimum": -(2**53) + 1}}}
ENVIRONMENT = "You are opencode.\n<env>\n  Today's date\n</env>"
CALL = {"id": "a1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
RESULT = {"role": "tool", "tool_call_id": "a1", "content": "9 degrees"}
SHAPES: dict[str, Shape] = {
    "llm": Shape(CHAT, {"messages": [user("llm")], "max_tokens": 24, **STREAMED}),
    "llm, a schema": Shape(CHAT, {"messages": [user("llm schema")], **form(CITY), **STREAMED}),
    "llm, functions": Shape(CHAT, {"messages": [user("llm function")], "tools": [tool(CITY)], **STREAMED}),
    "LiteLLM, a tool's result": Shape(
        CHAT,
        {"messages": [user("Weather?"), {"role": "assistant", "tool_calls": [CALL]}, RESULT], "tools": [tool(CITY)]},
    ),
    "LiteLLM, Anthropic's tools": Shape(
        MESSAGES,
        {
            "messages": [{"role": "user", "content": text("LiteLLM Anthropic")}],
            "max_tokens": 60,
            "tools": [{"name": "weather", "input_schema": CLOSED_CITY, "type": "custom", "description": "d"}],
        },
    ),
    "LiteLLM, Anthropic's format": Shape(
        MESSAGES,
        {
            "messages": [{"role": "user", "content": text("LiteLLM Anthropic format")}],
            "max_tokens": 80,
            "tool_choice": {"name": "json_tool_call", "type": "tool"},
            "tools": [{"name": "json_tool_call", "input_schema": {**CLOSED_CITY, "title": "F"}}],
        },
    ),
    "LiteLLM, Ollama's chat": Shape(
        "/api/chat",
        {"messages": [{**user("LiteLLM Ollama"), "images": []}], "options": {"num_predict": 16}, "stream": False},
        headers={},
    ),
    "LiteLLM, Ollama's prompt": Shape(
        "/api/generate",
        {"prompt": "### User:\nA\n\n", "options": {"temperature": 0}, "stream": False, "format": CITY, "images": []},
        headers={},
        goes_on=False,
    ),
    "smolagents": Shape(
        CHAT,
        {
            "messages": [SYSTEM, TASK],
            "max_tokens": 80,
            "stop": ["Observation:", "Calling tools:"],
            "tool_choice": "required",
            "tools": [tool(CITY)],
            **STREAMED,
        },
    ),
    "smolagents, code": Shape(
        CHAT,
        {
            "messages": [SYSTEM, {"role": "user", "content": text("New code")}],
            "stop": ["Observation:", "Calling tools:", "</code>"],
            **form({**CLOSED_CITY, "title": "ThoughtAndCodeAnswer"}, strict=True),
        },
    ),
    "aider": Shape(
        CHAT,
        {
            "messages": [*FILES, user("What does add do?\n\nReply in English.\n")],
            "stream": True,
            "temperature": 0,
        },
    ),
    "crewai": Shape(
        CHAT,
        {
            "messages": [user("\nCurrent Task: x")],
            "temperature": 0.0,
            "tool_choice": "auto",
            "tools": [tool(CLOSED_CITY, strict=True)],
        },
        ignored=("tools.function.strict",),
    ),
    "AI SDK, an object": Shape(
        CHAT,
        {"messages": [user("AI SDK object")], "temperature": 0, **form(COUNT, strict=True)},
    ),
    "AI SDK, tools": Shape(
        CHAT,
        {
            "messages": [user("AI SDK tools"), {**assistant(""), "content": None, "tool_calls": [CALL]}, RESULT],
            "tools": [tool({"$schema": DRAFT_7, **CLOSED_CITY})],
            "tool_choice": "required",
        },
    ),
    "AI SDK, responses": Shape(
        RESPONSES,
        {
            "input": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": text("AI SDK", "input_text")},
            ],
            "max_output_tokens": 120,
            "text": {"format": {"type": "json_schema", "strict": True, "name": "response", "schema": CLOSED_CITY}},
            "tools": [{"type": "function", "name": "weather", "description": "d", "parameters": CLOSED_CITY}],
            "tool_choice": "auto",
        },
    ),
    "opencode": Shape(
        CHAT,
        {
            "messages": [{"role": "system", "content": ENVIRONMENT}, user('"Read a.py"')],
            "max_tokens": 64,
            "tool_choice": "auto",
            "tools": [tool({"$schema": "https://json-schema.org/draft/2020-12/schema", **CITY})],
            **STREAMED,
        },
    ),
    "Open WebUI": Shape(
        CHAT,
        {
            "messages": [user("Open WebUI")],
            "stream": True,
            "tools": [tool(CITY), *(tool({"type": "object", "properties": {}}, name=f"tool_{n}") for n in range(35))],
        },
    ),
    "Open WebUI, a title": Shape(CHAT, {"messages": [user("### Task: a title")], "stream": False, "max_tokens": 1000}),
}


@pytest.fixture(scope="module")
def kept_site(serve_once: ServeOnce) -> Site:
    return serve_once(template=ByteTemplate(takes_tools=True, has_thoughts=True))


@pytest.fixture
def site(kept_site: Site) -> Iterator[Site]:
    """Without conversations: some shapes begin alike, or name the same call."""
    yield kept_site
    for summary in kept_site.manager.list_conversations(LOCAL):
        kept_site.manager.delete(LOCAL, summary.conversation_id)


@pytest.mark.parametrize("name", SHAPES)
def test_what_a_program_sends_is_answered_and_stays_warm(site: Site, name: str) -> None:
    shape = SHAPES[name]
    first, answer = ask(site, shape, shape.body)
    assert (first["miss_reason"], tuple(first["ignored"])) == (None, shape.ignored)
    if not shape.goes_on:
        return
    held = "input" if shape.path == RESPONSES else "messages"
    follow, _ = ask(site, shape, {**shape.body, held: [*shape.body[held], *answer, user("And?")]})
    assert follow["session_id"] == first["session_id"]
    assert follow["miss_reason"] is None
    assert follow["fed"] <= len("And?") + 5  # with the token that is pending, the answer's end, and two roles


def ask(site: Site, shape: Shape, body: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """(the receipt, the answer as messages)."""
    content = json.dumps({"model": MODEL, **body})
    with httpx.Client(base_url=site.url, timeout=30) as http:
        answered = http.post(shape.path, content=content, headers=shape.headers)
    assert answered.status_code == 200, answered.text
    if answered.headers["content-type"].startswith("text/event-stream"):
        chunks = [json.loads(line[6:]) for line in answered.text.split("\n") if line.startswith("data: {")]
        said = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
        return dict(chunks[-1]["keepwarm"]), [assistant(said)]
    told = answered.json()
    if shape.path == CHAT:
        return told["keepwarm"], [told["choices"][0]["message"]]
    if shape.path == MESSAGES:
        return told["keepwarm"], [{"role": "assistant", "content": told["content"]}]
    return told["keepwarm"], told.get("output") or [told.get("message")]
