"""What a request's formats become, and what they exclude."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from model_runtime.interface.grammar import Grammar
from model_runtime.text.generic_tools import GenericTools
from tests.app.conftest import MODEL, Serve, assistant, user
from tests.app.site import Site
from tests.sessions.byte_template import END, ByteTemplate

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("weather", "time")
]


class Asked:
    """A site that remembers the grammars of its answers."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.grammars: list[Grammar | None] = []
        submit = site.engine.submit

        def remember(request: Any, listener: Any) -> Any:
            self.grammars.append(request.sampling.grammar)
            return submit(request, listener)

        site.engine.submit = remember  # type: ignore[method-assign]

    def post(self, *messages: Any, **more: Any) -> httpx.Response:
        body = {"model": MODEL, "messages": list(messages) or [user("Hello")], **more}
        return httpx.post(f"{self.site.url}/v1/chat/completions", json=body, timeout=30)


@pytest.fixture
def asked(serve: Serve) -> Asked:
    call = b'<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>'
    return Asked(serve(headless=True, template=GenericTools(ByteTemplate()), answer=lambda _: (*call, END)))


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}},
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        {"guided_json": SCHEMA},
        {"guided_json": json.dumps(SCHEMA)},
        {"json_schema": SCHEMA},
        {"structured_outputs": {"json": SCHEMA, "regex": None}},
    ],
)
def test_a_schema_reaches_the_engine(asked: Asked, fields: dict[str, Any]) -> None:
    answered = asked.post(**fields)
    assert answered.status_code == 200, answered.text
    assert answered.json()["keepwarm"]["ignored"] == []
    closed = json.dumps({**SCHEMA, "additionalProperties": False})
    assert asked.grammars == [Grammar("json_schema", closed)]
    session = answered.json()["keepwarm"]["session_id"]
    assert asked.site.manager.view("local", session).settings.sampling.grammar is None  # it was of this answer only


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({"response_format": {"type": "json_object"}}, Grammar("json_schema", '{"type": "object"}')),
        ({"response_format": {"type": "text"}}, None),
        ({"guided_regex": "a+"}, Grammar("regex", "a+")),
        ({"guided_choice": ["a", 'b"']}, Grammar("lark", 'start: "a" | "b\\""')),
        ({"grammar": 'root ::= "a"'}, Grammar("gbnf", 'root ::= "a"')),
        ({"structured_outputs": {"grammar": 'root ::= "a"'}}, Grammar("gbnf", 'root ::= "a"')),
    ],
)
def test_other_formats(asked: Asked, fields: dict[str, Any], grammar: Grammar | None) -> None:
    assert asked.post(**fields).status_code == 200
    assert asked.grammars == [grammar]


@pytest.mark.parametrize(
    ("choice", "names"),
    [("required", {"weather", "time"}), ({"type": "function", "function": {"name": "weather"}}, {"weather"})],
)
def test_a_forced_call(asked: Asked, choice: Any, names: set[str]) -> None:
    answered = asked.post(tools=TOOLS, tool_choice=choice).json()
    (grammar,) = asked.grammars
    assert grammar is not None
    assert {name for name in ("weather", "time") if f'\\"{name}\\"' in grammar.text} == names
    assert answered["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "weather"
    assert answered["choices"][0]["finish_reason"] == "tool_calls"


def of_chat(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def of_responses(mode: str, *names: str) -> dict[str, Any]:
    return {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": name} for name in names]}


@pytest.mark.parametrize("choice_of", [of_chat, of_responses])
def test_allowed_tools_leave_the_prompt_as_it_is(asked: Asked, choice_of: Callable[..., dict[str, Any]]) -> None:
    """So what the conversation has kept stays, whichever tools may be called in this turn."""
    free = asked.post(tools=TOOLS).json()
    for mode, begins in (("auto", "start: KWTEXT | kwcall"), ("required", 'start: "<tool_call>')):
        said = asked.post(tools=TOOLS, tool_choice=choice_of(mode, "weather")).json()
        grammar = asked.grammars[-1]
        assert grammar is not None
        assert grammar.text.startswith(begins)
        assert {name for name in ("weather", "time") if f'\\"{name}\\"' in grammar.text} == {"weather"}
        assert said["usage"]["prompt_tokens"] == free["usage"]["prompt_tokens"]
        assert said["keepwarm"]["ignored"] == []
    asked.post(tools=TOOLS, tool_choice=choice_of("auto", "weather", "time"))
    assert asked.grammars[-1] is None  # all of them: nothing has to be enforced


def test_responses_take_allowed_tools(asked: Asked) -> None:
    tools = [{"type": "function", **tool["function"]} for tool in TOOLS]
    body = {"model": MODEL, "input": "Hello", "tools": tools, "tool_choice": of_responses("auto", "time")}
    answered = httpx.post(f"{asked.site.url}/v1/responses", json=body, timeout=30)
    assert answered.status_code == 200, answered.text
    assert answered.json()["tool_choice"] == body["tool_choice"]
    (grammar,) = asked.grammars
    assert grammar is not None
    assert (grammar.has_text, '\\"weather\\"' in grammar.text, '\\"time\\"' in grammar.text) == (True, False, True)


@pytest.mark.parametrize(
    ("choice", "param"),
    [
        (of_chat("auto"), "tool_choice.tools"),
        (of_chat("auto", "other"), "tool_choice.tools"),
        (of_chat("none", "weather"), "tool_choice.mode"),
        ({"type": "allowed_tools"}, "tool_choice.mode"),
        ({"type": "allowed_tools", "mode": "auto", "tools": ["weather"]}, "tool_choice.tools"),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp", "name": "weather"}]}, "tool_choice.tools"),
        ({**of_responses("auto", "weather"), "strict": True}, "tool_choice"),
        ({"type": "allowed_tools", "allowed_tools": "weather"}, "tool_choice"),
        ({**of_chat("auto", "weather"), "mode": "required"}, "tool_choice"),
        ({"type": "function", "function": {"name": "weather", "mode": "auto"}}, "tool_choice"),
        ({"type": "function", "name": "weather", "mode": "auto"}, "tool_choice"),
    ],
)
def test_a_tool_choice_that_is_none(asked: Asked, choice: Any, param: str) -> None:
    refused = asked.post(tools=TOOLS, tool_choice=choice)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param), refused.text


def test_with_tools_the_answer_keeps_to_the_schema_or_is_a_call(asked: Asked) -> None:
    asked.post(tools=TOOLS, response_format={"type": "json_object"})
    (grammar,) = asked.grammars
    assert grammar is not None
    assert grammar.text.startswith('start: called | said\nsaid: %json {"type": "object"}\ncalled: "<tool_call>')


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_json": SCHEMA, "guided_regex": "a"}, "guided_regex"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "json_object", "pattern": "a"}}, "response_format.pattern"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA, "lax": True}}},
            "response_format.json_schema.lax",
        ),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": [1]}, "guided_json"),
        ({"guided_choice": ["a", ""]}, "guided_choice"),
        ({"guided_regex": "a" * 300_000}, "guided_regex"),
        ({"structured_outputs": {"xml": "a"}}, "structured_outputs.xml"),
        ({"structured_outputs": {"regex": 5}}, "guided_regex"),
        ({"tools": TOOLS, "tool_choice": "required", "guided_regex": "a"}, "guided_regex"),
        ({"tools": TOOLS, "guided_regex": "a"}, "guided_regex"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice"),
        ({"guided_regex": "a", "ignore_eos": True}, None),
    ],
)
def test_what_excludes_each_other_is_refused(asked: Asked, fields: dict[str, Any], param: str | None) -> None:
    refused = asked.post(**fields)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    assert asked.grammars == []


def test_an_answer_that_has_begun_keeps_to_no_format(serve: Serve) -> None:
    asked = Asked(serve(headless=True, template=ByteTemplate(opens_thoughts=True, variables=("enable_thinking",))))
    refused = asked.post(guided_regex="a")
    assert refused.status_code == 400
    assert "begins every answer with a thought" in refused.json()["error"]["message"]
    assert asked.post(guided_regex="a", enable_thinking=False).status_code == 200
    refused = asked.post(user("a"), assistant("b"), guided_regex="a", enable_thinking=False)
    assert "cannot keep to a format" in refused.json()["error"]["message"]


def test_a_thought_may_come_before_an_allowed_call(serve: Serve) -> None:
    asked = Asked(serve(headless=True, template=ByteTemplate(takes_tools=True, opens_thoughts=True)))
    assert asked.post(tools=TOOLS, tool_choice=of_chat("auto", "time")).status_code == 200
    assert asked.post(tools=TOOLS, tool_choice=of_chat("required", "time")).status_code == 400


def parameters_with(schema: dict[str, Any], **function: Any) -> list[Any]:
    parameters = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return [{"type": "function", "function": {"name": "weather", "parameters": parameters, **function}}]


@pytest.mark.parametrize("unknown", ["uniqueItems", "(?!"])
@pytest.mark.parametrize("fields", [{"tool_choice": "required"}, {"response_format": {"type": "json_object"}}])
def test_a_call_is_held_to_what_can_be_enforced_of_its_tool(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, unknown: str, fields: dict[str, Any]
) -> None:
    """The engine knows no `uniqueItems` without being told to leave it out, and no look-ahead at all."""

    def refusal(grammar: Grammar) -> str:
        held = [line for line in grammar.text.splitlines() if '"lenient": true' not in line or unknown == "(?!"]
        return f"It cannot be kept to: {unknown}." if any(unknown in line for line in held) else ""

    monkeypatch.setattr(asked.site.engine, "grammar_refusal", refusal)
    tools = parameters_with({"type": "array", "uniqueItems": True, "items": {"type": "string", "pattern": "^(?!x)"}})
    answered = asked.post(tools=tools, **fields)
    assert answered.status_code == 200, answered.text
    assert any("held to the rest. That concerns weather." in note for note in answered.json()["keepwarm"]["notes"])
    strict = asked.post(
        tools=parameters_with({"type": "array", "uniqueItems": True, "pattern": "(?!"}, strict=True), **fields
    )
    assert strict.status_code == 400
    assert unknown in strict.json()["error"]["message"]


def test_one_tool_that_cannot_be_enforced_frees_no_other(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(grammar: Grammar) -> str:
        return "No look-ahead." if "(?!" in grammar.text else ""

    monkeypatch.setattr(asked.site.engine, "grammar_refusal", refusal)
    held = {"type": "function", "function": {"name": "held", "parameters": SCHEMA, "strict": True}}
    tools = [*parameters_with({"type": "string", "pattern": "^(?!x)"}), held]
    answered = asked.post(tools=tools, tool_choice="required")
    assert answered.status_code == 200, answered.text
    assert any(note.endswith("That concerns weather.") for note in answered.json()["keepwarm"]["notes"])
    (grammar,) = asked.grammars
    assert grammar is not None
    (line,) = (line for line in grammar.text.splitlines() if '"required"' in line)
    assert ("lenient" in line, json.dumps(SCHEMA["properties"]) in line) == (False, True)
    named = {"type": "function", "function": {"name": "held"}}
    assert (
        asked.post(tools=tools, tool_choice=named).json()["keepwarm"]["notes"]
        == answered.json()["keepwarm"]["notes"][:-1]
    )


@pytest.mark.parametrize("how", [5, None, {"lenient": True}, {"whitespace_flexible": True}])
def test_a_client_does_not_say_how_a_tool_is_held_to(asked: Asked, how: Any) -> None:
    for parameters in (SCHEMA, {}):
        tools = [{"type": "function", "function": {"name": "weather", "parameters": parameters, "strict": True}}]
        told = json.loads(json.dumps(tools))
        told[0]["function"]["parameters"]["x-guidance"] = how
        for one in (tools, told):
            answered = asked.post(tools=one, tool_choice="required")
            assert answered.status_code == 200, answered.text
        assert asked.grammars[-1] == asked.grammars[-2]
