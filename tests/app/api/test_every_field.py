"""Every field that a request may have shows its effect or its refusal. A new field without an entry here fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, get_args

import httpx
import pytest
from pydantic import BaseModel

from app.api import requests
from app.api.fields.other_fields import HINTS, INSTEAD, NEUTRAL
from model_runtime.interface.sampling_params import SamplingParams
from tests.app.conftest import MODEL, Serve, assistant, user
from tests.app.site import Site
from tests.sessions.byte_template import ByteTemplate

TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
Check = Callable[[Any, SamplingParams], object]
REFUSED = "refused"


def text_of(answer: Any) -> str:
    return str(answer["choices"][0]["message"]["content"])


# field -> one or more (value, what shows its effect), or (value, REFUSED)
CHAT: dict[str, list[tuple[Any, Check | str]]] = {
    "model": [("gpt-4o", REFUSED)],
    "messages": [([user("Other words")], lambda a, s: text_of(a) == "You said: Other words")],
    "stream": [(True, lambda a, s: a["object"] == "chat.completion.chunk")],
    "stream_options": [({"include_usage": True}, REFUSED)],  # without stream
    "prompt_cache_key": [("", REFUSED)],
    "min_tokens": [(5, lambda a, s: s.min_new_tokens == 5)],
    "ignore_eos": [(True, lambda a, s: s.ignore_eos)],
    "stop_token_ids": [([65, 66], lambda a, s: s.stop_token_ids == (65, 66)), ([5_000], REFUSED)],
    "repeat_penalty": [(1.25, lambda a, s: s.repetition_penalty == 1.25)],
    "max_tokens": [
        (3, lambda a, s: a["usage"]["completion_tokens"] == 3),
        (3.0, lambda a, s: a["usage"]["completion_tokens"] == 3),
        (0, REFUSED),
        (1e300, lambda a, s: True),
        (True, REFUSED),
    ],
    "max_completion_tokens": [(3, lambda a, s: a["usage"]["completion_tokens"] == 3), (0, REFUSED)],
    "temperature": [(0.25, lambda a, s: s.temperature == 0.25), (9, REFUSED)],
    "top_p": [(0.25, lambda a, s: s.top_p == 0.25), (0, lambda a, s: 0 < s.top_p < 1e-6)],
    "top_k": [(7, lambda a, s: s.top_k == 7), (0, lambda a, s: s.top_k == 0), (-1, lambda a, s: s.top_k == 0)],
    "min_p": [(0.25, lambda a, s: s.min_p == 0.25)],
    "repeat_last_n": [
        (64, lambda a, s: s.penalty_window == 64),
        (10**9, lambda a, s: s.penalty_window == 8192),
        (-1, lambda a, s: s.penalty_window is None),
        (-2, REFUSED),
    ],
    "repetition_penalty": [(1.25, lambda a, s: s.repetition_penalty == 1.25)],
    "presence_penalty": [(1.25, lambda a, s: s.presence_penalty == 1.25)],
    "frequency_penalty": [(1.25, lambda a, s: s.frequency_penalty == 1.25)],
    "seed": [(5, lambda a, s: s.seed == 5), (5.0, lambda a, s: s.seed == 5), (1e20, REFUSED)],
    "stop": [
        (" said", lambda a, s: text_of(a) == "You"),
        ("", REFUSED),
        (["a", ""], REFUSED),
        (list("QXZWd"), lambda a, s: text_of(a) == "You sai"),
        (list("abcdefghijklmnopq"), REFUSED),
    ],
    "logprobs": [(True, lambda a, s: a["choices"][0]["logprobs"] is not None)],
    "top_logprobs": [(3, REFUSED)],  # without logprobs
    "tools": [([TOOL], lambda a, s: a["usage"]["prompt_tokens"] > 40)],
    "tool_choice": [("required", REFUSED), ({"type": "function", "function": {"name": "f"}}, REFUSED)],  # without tools
    "parallel_tool_calls": [(False, lambda a, s: True), (1, REFUSED)],  # its effect is in test_tools
    "chat_template_kwargs": [
        ({"effort": "low"}, lambda a, s: a["usage"]["prompt_tokens"] > 20),
        ({"efort": "low"}, REFUSED),
    ],
    "enable_thinking": [(False, lambda a, s: a["usage"]["prompt_tokens"] > 30)],
    "thinking": [({"type": "disabled"}, lambda a, s: a["usage"]["prompt_tokens"] > 20), ("off", REFUSED)],
    "reasoning_effort": [("none", lambda a, s: a["usage"]["prompt_tokens"] > 30), (5, REFUSED)],
    "continue_final_message": [(True, REFUSED)],  # of a user's message
    "add_generation_prompt": [(False, REFUSED)],
    "n": [(2, REFUSED)],
    # Their effects are in test_formats.
    "response_format": [({"type": "json_object"}, lambda a, s: True), ({"type": "yaml"}, REFUSED)],
    "guided_json": [({"type": "object"}, lambda a, s: True), ({"type": "no!"}, REFUSED), ("{", REFUSED)],
    "guided_regex": [("a+", lambda a, s: True), ("no!", REFUSED)],
    "guided_choice": [(["a", "b"], lambda a, s: True), (["no!"], REFUSED), ("a", REFUSED)],
    "guided_grammar": [('root ::= "a"', lambda a, s: True), ("no!", REFUSED)],
    "grammar": [('root ::= "a"', lambda a, s: True), ("no!", REFUSED)],
    "json_schema": [({"type": "object"}, lambda a, s: True), ({"type": "no!"}, REFUSED), ([1], REFUSED)],
    "structured_outputs": [({"json": {"type": "object"}}, lambda a, s: True), ({"xml": "a"}, REFUSED)],
    "logit_bias": [({"5": 1, "7": -100}, lambda a, s: s.logit_bias == ((5, 1), (7, -100))), ({"x": 1}, REFUSED)],
    "modalities": [(["audio"], REFUSED)],
    "audio": [({"voice": "x"}, REFUSED)],
    "functions": [([{"name": "f"}], REFUSED)],
    "function_call": [({"name": "f"}, REFUSED)],
    "web_search_options": [({}, REFUSED)],
}
MESSAGES: dict[str, list[tuple[Any, Check | str]]] = {
    "role": [("robot", REFUSED)],
    "content": [
        ("Other words", lambda a, s: text_of(a) == "You said: Other words"),
        ([{"type": "text", "text": "Parts"}], lambda a, s: text_of(a) == "You said: Parts"),
        ([{"type": "image_url", "image_url": {"url": "data:,"}}], REFUSED),
    ],
    "name": [("Bob", lambda a, s: True)],  # compared in test_which_conversation
    "tool_calls": [([{"id": "1", "function": {"name": "f", "arguments": "{}"}}], REFUSED)],
    "tool_call_id": [("1", REFUSED)],  # of a message that answers no call
    "reasoning_content": [("hm", REFUSED)],  # of a user; an assistant's are in test_thoughts
    "reasoning": [("hm", REFUSED)],
    "refusal": [("no", REFUSED)],  # of a user; an assistant's is in test_foreign_shapes
}
# What other servers and libraries take, and the value of each that would change an answer here.
FOREIGN: dict[str, Any] = {
    "best_of": 2,
    "chat_template": "{{ messages }}",
    "bad_words": ["x"],
    "echo": True,
    "include_stop_str_in_output": True,
    "documents": [{"text": "x"}],
    "skip_special_tokens": False,
    "verbosity": "low",
    "typical_p": 0.5,
    "xtc_probability": 0.1,
    "mirostat": 2,
    "samplers": ["top_k"],
    "logits_processors": ["x"],
    "n_predict": 5,
    "use_beam_search": True,
    "length_penalty": 2,
    "options": {"num_ctx": 4096},
    "cache_prompt": False,
    "lora": [{"id": 0, "scale": 1}],
    "suffix": "x",
    "a_field_of_next_year": 1,
    "a_switch_of_next_year": False,
}


def shapes() -> dict[str, type[BaseModel]]:
    found = {name: shape for name, shape in vars(requests).items() if isinstance(shape, type)}
    return {n: s for n, s in found.items() if issubclass(s, BaseModel) and s.__module__ == requests.__name__}


def test_every_field_has_an_entry() -> None:
    assert set(requests.ChatCompletionRequest.model_fields) == set(CHAT)
    assert set(requests.Message.model_fields) == set(MESSAGES)
    nested = {"TextPart", "RefusalPart", "MediaPart", "FunctionCall", "MessageToolCall", "FunctionDefinition", "Tool"}
    assert set(shapes()) == {"Strict", "ChatCompletionRequest", "Message", "StreamOptions", *nested}
    known = {field for shape in shapes().values() for field in shape.model_fields}
    assert not known & (HINTS - {"id"}), "a field cannot be honoured and ignored"
    assert not known & set(FOREIGN)
    assert not HINTS & (set(INSTEAD) | set(NEUTRAL))


@pytest.fixture
def site(serve: Serve) -> Site:
    return serve(headless=True, template=ByteTemplate(takes_tools=True, variables=("effort", "enable_thinking")))


def ask(http: httpx.Client, **body: Any) -> httpx.Response:
    return http.post("/v1/chat/completions", json={"model": MODEL, "messages": [user("Hello")], **body})


def shown(site: Site, http: httpx.Client, what: str, body: dict[str, Any], check: Check | str) -> None:
    before = len(site.manager.list_conversations("local"))
    answered = ask(http, **body)
    if check == REFUSED:
        assert 400 <= answered.status_code < 500, what
        error = answered.json()["error"]
        assert error["param"], what
        assert what.split(".")[-1] in f"{error['param']} {error['message']}", error
        assert len(site.manager.list_conversations("local")) == before
        return
    assert answered.status_code == 200, answered.text
    if answered.headers["content-type"].startswith("text/event-stream"):
        answer: Any = json.loads(answered.text.split("\n\n")[0].removeprefix("data: "))
    else:
        answer = answered.json()
        assert answer["keepwarm"]["ignored"] == []
    assert callable(check)
    assert check(answer, site.engine.last_sampling), what


def test_every_field_shows_its_effect_or_is_refused(site: Site, http: httpx.Client) -> None:
    for field, cases in CHAT.items():
        for number, (value, check) in enumerate(cases):
            # Its own words: a text that was sent before would continue that conversation with its settings.
            shown(site, http, field, {"messages": [user(f"About {field} {number}")], field: value}, check)
    for field, cases in MESSAGES.items():
        for value, check in cases:
            shown(site, http, f"messages.{field}", {"messages": [{**user("Hello"), field: value}]}, check)


def test_of_two_limits_the_smaller_one_holds(site: Site, http: httpx.Client) -> None:
    for limits in ({"max_tokens": 2, "max_completion_tokens": 4}, {"max_tokens": 4, "max_completion_tokens": 2}):
        answered = ask(http, messages=[user(f"About {limits}")], **limits)
        assert answered.json()["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("field", sorted(FOREIGN))
def test_what_other_servers_take_is_refused_by_name(site: Site, http: httpx.Client, field: str) -> None:
    refused = ask(http, **{field: FOREIGN[field]})
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["param"], error["code"]) == (field, "unsupported_parameter")
    assert field in error["message"]
    assert site.manager.list_conversations("local") == []


def test_what_asks_for_nothing_is_accepted(site: Site, http: httpx.Client) -> None:
    neutral = {field: values[0] for field, values in NEUTRAL.items()}
    neutral |= {"grammar": None, "guided_json": {}, "bad_words": [], "chat_template_kwargs": {}, "echo": False}
    answered = ask(http, **neutral)
    assert answered.status_code == 200, answered.text
    assert answered.json()["keepwarm"]["ignored"] == []


@pytest.mark.parametrize("streams", [False, True])
def test_hints_are_named_in_the_response(site: Site, http: httpx.Client, streams: bool) -> None:
    said = [{**user("a"), "id": "1", "createdAt": "2026"}, {**assistant("b"), "id": "2"}, user("c")]
    answered = ask(http, user="bob", store=False, metadata={"a": "b"}, messages=said, stream=streams)
    assert answered.status_code == 200
    named = ["messages.id", "messages.createdAt", "user", "store", "metadata"]
    if streams:
        assert all(f'"{name}"' in answered.text for name in named)
    else:
        assert sorted(answered.json()["keepwarm"]["ignored"]) == sorted(named)


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(("strict", "ignored"), [(True, ["tools.function.strict"]), (False, []), (None, [])])
def test_a_strict_tool_is_shown_to_the_model_and_named_because_it_is_not_enforced(
    http: httpx.Client, streams: bool, strict: bool | None, ignored: list[str]
) -> None:
    tool = {**TOOL, "function": {**TOOL["function"], "strict": strict}}
    body = {"model": MODEL, "messages": [user("Hi")], "tools": [tool, tool], "stream": streams}
    answered = http.post("/v1/chat/completions", json=body)
    assert answered.status_code == 200, answered.text
    lines = [line for line in answered.text.splitlines() if '"keepwarm"' in line]
    answer = json.loads(lines[-1].removeprefix("data: ")) if streams else answered.json()
    assert answer["keepwarm"]["ignored"] == ignored


@pytest.mark.parametrize(
    ("tool", "named"),
    [
        ({**TOOL, "cache": True}, "tools.cache"),
        ({**TOOL, "function": {**TOOL["function"], "returns": {"type": "string"}}}, "tools.function.returns"),
        ({**TOOL, "strict": True}, "tools.strict"),
    ],
)
def test_other_fields_of_a_tool_are_refused_by_name(http: httpx.Client, tool: Any, named: str) -> None:
    body = {"model": MODEL, "messages": [user("Hi")], "tools": [tool]}
    answered = http.post("/v1/chat/completions", json=body)
    assert (answered.status_code, answered.json()["error"]["param"]) == (400, named)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("messages.thoughts", {**assistant("b"), "thoughts": "hm"}),
        ("messages.function_call", {**assistant("b"), "function_call": {"name": "f"}}),
        ("messages.content.detail", {"role": "assistant", "content": [{"type": "text", "text": "b", "detail": "x"}]}),
    ],
)
def test_what_a_message_says_beyond_its_shape_is_refused(
    site: Site, http: httpx.Client, where: str, message: Any
) -> None:
    refused = ask(http, messages=[user("a"), message, user("c")])
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, where)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("image_url", "This model reads no pictures"),
        ("input_audio", "This model reads no sound"),
        ("file", "This model reads no files"),
        ("input_text", "Parts of type 'input_text' are not supported"),
    ],
)
def test_parts_that_are_no_text_get_a_sentence(http: httpx.Client, kind: str, words: str) -> None:
    part = {"type": kind, kind: {"url": "data:image/png;base64,AAAA"}}
    refused = ask(http, messages=[{"role": "user", "content": [{"type": "text", "text": "What is it?"}, part]}])
    assert refused.status_code == 400
    assert words in refused.json()["error"]["message"]
    assert "str" not in refused.json()["error"]["param"].split(".")


def test_parameters_of_other_addresses(site: Site, http: httpx.Client) -> None:
    """Each route's query parameters, and bodies where nothing reads one: a tier in a body would have been left out."""
    session = ask(http).json()["keepwarm"]["session_id"]
    for method, path in (
        ("GET", "/v1/models"),
        ("GET", "/v1/sessions"),
        ("GET", f"/v1/sessions/{session}"),
        ("POST", f"/v1/sessions/{session}/pin"),
        ("POST", f"/v1/sessions/{session}/park"),
        ("DELETE", f"/v1/sessions/{session}"),
    ):
        refused = http.request(method, path, params={"teir": "host"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "teir")
        if method != "GET":
            refused = http.request(method, path, json={"tier": "host"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unused_body")
    assert "It has after, limit." in http.get("/v1/sessions?page=2").json()["error"]["message"]
    assert len(http.get("/v1/sessions?limit=1").json()["data"]) == 1
    assert http.get(f"/v1/sessions?after={session}").json()["data"] == []
    assert http.post(f"/v1/sessions/{session}/pin", json={}).status_code == 200


def test_the_tool_choices_that_are_documented(site: Site, http: httpx.Client) -> None:
    assert get_args(requests.Tool.model_fields["type"].annotation) == ("function",)
    plain = ask(http).json()["usage"]["prompt_tokens"]
    assert ask(http, tools=[TOOL], tool_choice="none").json()["usage"]["prompt_tokens"] == plain
    assert ask(http, tools=[TOOL], tool_choice="auto").json()["usage"]["prompt_tokens"] > plain
    refused = ask(http, tools=[{**TOOL, "timeout": 5}])
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tools.timeout")
