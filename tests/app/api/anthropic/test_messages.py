"""Anthropic's Messages API over HTTP: shapes as its clients send them."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.app.api.conftest import ServeOnce
from tests.app.api.tool_loop import LAST, NAME, SCHEMA, THOUGHT, TURNS, fed_in_turn, worker
from tests.app.conftest import MODEL, Serve, user
from tests.app.site import Site
from tests.sessions.byte_template import END, TOOLS, ByteTemplate

TOOL = {"name": NAME, "description": "Looks up.", "input_schema": SCHEMA, "cache_control": {"type": "ephemeral"}}


@pytest.fixture(scope="module")
def site(serve_once: ServeOnce) -> Site:
    from tests.app.site import echo

    def answer(ledger: tuple[int, ...]) -> Any:
        return worker(ledger) if TOOLS in ledger else echo(ledger)

    return serve_once(template=ByteTemplate(takes_tools=True, has_thoughts=True), answer=answer)


def post(site: Site, body: Any, path: str = "/v1/messages", **headers: str) -> httpx.Response:
    sent = {"anthropic-version": "2023-06-01", "x-api-key": "unused", **headers}
    with httpx.Client(base_url=site.url, timeout=30) as http:
        return http.post(path, json={"model": MODEL, "max_tokens": 200, **body}, headers=sent)


def told(answered: httpx.Response) -> dict[str, Any]:
    """The message, put together from its events as Anthropic's own client does where it is streamed."""
    assert answered.status_code == 200, answered.text
    if not answered.headers["content-type"].startswith("text/event-stream"):
        return dict(answered.json())
    message: dict[str, Any] = {}
    partial: dict[int, str] = {}
    kinds = []
    for piece in answered.text.strip().split("\n\n"):
        name, data = piece.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        kinds.append(event["type"])
        match event["type"]:
            case "message_start":
                message = event["message"]
            case "content_block_start":
                assert event["index"] == len(message["content"])
                message["content"].append(event["content_block"])
            case "content_block_delta":
                delta, block = event["delta"], message["content"][event["index"]]
                if delta["type"] == "input_json_delta":
                    partial[event["index"]] = partial.get(event["index"], "") + delta["partial_json"]
                    block["input"] = json.loads(partial[event["index"]])
                else:
                    name = delta["type"].removesuffix("_delta")
                    block[name] += delta[name]
            case "message_delta":
                message |= event["delta"] | {"keepwarm": event["keepwarm"]}
                assert (
                    event["usage"].items()
                    >= (message["usage"] | {"output_tokens": event["usage"]["output_tokens"]}).items()
                )
                message["usage"] = event["usage"]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == len(message["content"])
    return message


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("marks", [False, True])
def test_a_tool_loop_of_ten_turns_feeds_only_what_is_new(site: Site, streams: bool, marks: bool) -> None:
    mark = {"cache_control": {"type": "ephemeral"}} if marks else {}
    system = [
        {"type": "text", "text": f"x-anthropic-billing-header: {streams}"},  # other in every request
        {"type": "text", "text": f"You work {streams} {marks}.", **mark},
    ]
    tool = {name: value for name, value in TOOL.items() if name != "cache_control" or marks}
    messages: list[Any] = [user("Do it.")]
    sessions, result = set(), ""
    for turn in range(TURNS):
        system[0]["text"] = f"x-anthropic-billing-header: {turn}"
        message = told(
            post(
                site,
                {
                    "system": system,
                    "messages": messages,
                    "tools": [tool],
                    "stream": streams,
                    "thinking": {"type": "adaptive"},
                },
            )
        )
        usage, receipt = message["usage"], message["keepwarm"]
        assert usage["cache_read_input_tokens"] == receipt["reused"]
        fed = usage["cache_creation_input_tokens" if marks else "input_tokens"]
        assert fed == receipt["fed"] == (fed_in_turn(result) if turn else fed)
        assert usage["input_tokens" if marks else "cache_creation_input_tokens"] == 0
        assert receipt["miss_reason"] is None
        assert receipt["ignored"] == ["system.x-anthropic-billing-header", "thinking"]
        sessions.add(receipt["session_id"])
        if turn == TURNS - 1:
            break
        thinking, text, call = message["content"]
        assert (thinking["thinking"], text["text"], call["input"]) == ("Hm.", f"Step {turn}.", {"b": turn, "a": 1.0})
        assert message["stop_reason"] == "tool_use"
        result = f"Found {turn}"
        sent = dict(sorted(call["input"].items()))  # as clients in other languages write it
        messages += [
            {"role": "assistant", "content": [thinking, text, call | {"input": sent, "caller": None}]},
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": call["id"],
                        "content": [{"type": "text", "text": result}],
                        **mark,
                    }
                ],
            },
        ]
    assert [block["text"] for block in message["content"]] == [LAST]
    assert (message["stop_reason"], len(sessions)) == ("end_turn", 1)


def test_the_switch_is_heard_and_the_answer_is_a_message(serve: Serve) -> None:
    template = ByteTemplate(variables=("enable_thinking",), has_thoughts=True)
    site = serve(headless=True, template=template, answer=lambda _: (*f"{THOUGHT}Hello".encode(), END))
    message = told(post(site, {"messages": [user("Hi")], "thinking": {"type": "enabled", "budget_tokens": 1024}}))
    assert message["content"] == [
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        {"type": "text", "text": "Hello"},
    ]
    assert message["keepwarm"]["ignored"] == ["thinking.budget_tokens"]
    view = site.manager.view("local", message["keepwarm"]["session_id"])
    assert json.loads(view.settings.template_variables) == {"enable_thinking": True}
    assert (message["id"][:4], message["type"], message["role"], message["model"]) == (
        "msg_",
        "message",
        "assistant",
        MODEL,
    )


@pytest.mark.parametrize("streams", [False, True])
def test_why_an_answer_ended(site: Site, streams: bool) -> None:
    def end(**more: Any) -> Any:
        message = told(post(site, {"messages": [user("Hello")], "stream": streams, **more}))
        return message["stop_reason"], message["stop_sequence"], message["content"][0]["text"]

    assert end() == ("end_turn", None, "You said: Hello")
    assert end(max_tokens=3) == ("max_tokens", None, "You")
    assert end(stop_sequences=["xx", "said"]) == ("stop_sequence", "said", "You ")
    assert end(stop_sequences=["You"]) == ("stop_sequence", "You", "")


def test_an_assistants_message_last_is_gone_on_with(site: Site) -> None:
    messages = [user("Hello"), {"role": "assistant", "content": "You sa"}]
    assert told(post(site, {"messages": messages}))["content"] == [{"type": "text", "text": "id: Hello"}]


def test_errors_in_results_reach_the_model(site: Site) -> None:
    for content, shown in (("no file", "Error: no file"), ("Error: no file", "Error: no file")):
        call = {"type": "tool_use", "id": "c1", "name": NAME, "input": {}}
        result = {"type": "tool_result", "tool_use_id": "c1", "content": content, "is_error": True}
        messages = [user("Go"), {"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
        session = told(post(site, {"messages": messages}))["keepwarm"]["session_id"]
        assert site.manager.view("local", session).messages[2].text == shown


def test_arguments_that_are_no_object_come_back_as_they_were(serve: Serve) -> None:
    said = '<tool_call>{"name": "look_up", "arguments": "{city"}</tool_call>'
    site = serve(headless=True, template=ByteTemplate(takes_tools=True), answer=lambda _: (*said.encode(), END))
    message = told(post(site, {"messages": [user("Hi")], "tools": [TOOL]}))
    (call,) = message["content"]
    assert call["input"] == {"raw_arguments": "{city"}
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call["id"]}]}
    after = told(
        post(site, {"messages": [user("Hi"), {"role": "assistant", "content": [call]}, result], "tools": [TOOL]})
    )
    assert after["keepwarm"]["session_id"] == message["keepwarm"]["session_id"]


def test_pictures_are_refused_where_they_are_asked_about(site: Site) -> None:
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    asked = {"role": "user", "content": [{"type": "text", "text": "What is it?"}, picture]}
    refused = post(site, {"messages": [asked]})
    assert refused.status_code == 400
    assert "messages.0.content.1: This model reads no pictures" in refused.json()["error"]["message"]
    later = told(post(site, {"messages": [asked, {"role": "assistant", "content": "A cat."}, user("And?")]}))
    assert later["keepwarm"]["ignored"] == ["messages.content.image_url"] or "image" in str(
        later["keepwarm"]["ignored"]
    )


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "server_tool_use"}]}]}, "server_tool_use"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]}]},
            "tool_use",
        ),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "other"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "all"}}, "tool_choice"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"thinking": {"type": "loud"}}, "thinking"),
        ({"thinking": {"type": "disabled"}}, "thinking"),  # this template has no switch
        ({"stop_sequences": [""]}, "stop"),
        ({"output_config": {"format": {"type": "yaml"}}}, "format"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"type": "no!"}}}}, "output_config.format"),
        ({"output_config": {"colour": "red"}}, "output_config.colour"),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "history"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"model": "claude"}, "model"),
    ],
)
def test_refusals_have_anthropics_shape_and_name_the_field(site: Site, body: dict[str, Any], named: str) -> None:
    refused = post(site, {"messages": [user("Hi")], **body})
    found = refused.json()
    assert refused.status_code == (404 if named == "model" else 400)
    assert (found["type"], found["request_id"]) == ("error", None)
    assert found["error"]["type"] == ("not_found_error" if named == "model" else "invalid_request_error")
    assert named in found["error"]["message"], found


def test_what_clients_send_without_meaning_anything_is_accepted(site: Site) -> None:
    message = told(
        post(
            site,
            {
                "messages": [user("Hi")],
                "metadata": {"user_id": "u"},
                "service_tier": "auto",
                "container": None,
                "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            },
            path="/v1/messages?beta=true",
        )
    )
    assert message["keepwarm"]["ignored"] == ["metadata", "service_tier", "context_management"]


def test_a_prompt_is_counted_as_it_is_asked(site: Site) -> None:
    body = {"system": "Be brief.", "messages": [user("Count me")], "tools": [TOOL]}
    counted = post(site, body | {"max_tokens": None}, path="/v1/messages/count_tokens?beta=true")
    assert counted.status_code == 200, counted.text
    usage = told(post(site, body))["usage"]
    assert (
        counted.json()["input_tokens"]
        == usage["input_tokens"] + usage["cache_creation_input_tokens"] + usage["cache_read_input_tokens"]
    )


def test_a_key_may_come_in_anthropics_header(serve: Serve) -> None:
    site = serve(headless=True)
    key = site.store.keys.add("test")[1]
    assert told(post(site, {"messages": [user("Hi")]}, **{"x-api-key": key}))["type"] == "message"
    for headers in ({"x-api-key": "kw-wrong"}, {"x-api-key": ""}):
        refused = post(site, {"messages": [user("Hi")]}, **headers)
        assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
        assert refused.json()["type"] == "error"


def test_a_failed_answer_is_an_error_event(serve: Serve) -> None:
    def broken(ledger: tuple[int, ...]) -> tuple[int, ...]:
        raise RuntimeError("broken")

    site = serve(headless=True, answer=broken)
    streamed = post(site, {"messages": [user("Hi")], "stream": True})
    last = streamed.text.strip().split("\n\n")[-1]
    assert last.startswith("event: error\n")
    assert json.loads(last.split("data: ")[1])["error"]["type"] == "api_error"
    assert post(site, {"messages": [user("Hi")]}).json()["error"]["type"] == "api_error"
