"""Thoughts apart from content, in and out; what a request asks of the template; answers that go on."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.app.conftest import MODEL, Serve, assistant, user
from tests.app.site import Site
from tests.sessions.byte_template import END, ByteTemplate

THOUGHT = "<think>\nHm, </thi nking\n</think>\n\nHello"
WITH_SWITCH = ByteTemplate(variables=("enable_thinking", "effort"), has_thoughts=True)


def thinker(serve: Serve, **options: Any) -> Site:
    template = ByteTemplate(**({"has_thoughts": True} | options))
    text = THOUGHT.removeprefix("<think>") if options.get("opens_thoughts") else THOUGHT
    return serve(headless=True, template=template, answer=lambda _: (*text.encode(), END))


def ask(site: Site, *messages: Any, **more: Any) -> httpx.Response:
    with httpx.Client(base_url=site.url, timeout=30) as http:
        return http.post("/v1/chat/completions", json={"model": MODEL, "messages": list(messages), **more})


def parts(answered: httpx.Response) -> tuple[str, str]:
    """(reasoning_content, content) of a response, whole or streamed."""
    if not answered.headers["content-type"].startswith("text/event-stream"):
        message = answered.json()["choices"][0]["message"]
        return message.get("reasoning_content", ""), message["content"]
    events = [line.removeprefix("data: ") for line in answered.text.splitlines() if line.startswith("data: {")]
    deltas = [choice["delta"] for event in events for choice in json.loads(event)["choices"]]
    return tuple("".join(d.get(name) or "" for d in deltas) for name in ("reasoning_content", "content"))  # type: ignore[return-value]


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("opens", [False, True])
def test_thoughts_come_apart_and_the_history_is_found_without_them(serve: Serve, streams: bool, opens: bool) -> None:
    site = thinker(serve, opens_thoughts=opens)
    assert parts(ask(site, user("Hi"), stream=streams)) == ("Hm, </thi nking", "Hello")
    first = site.manager.list_conversations("local")[0].conversation_id
    for answer in (
        assistant("Hello"),
        {**assistant("Hello"), "reasoning_content": "Hm, </thi nking"},
        {**assistant("Hello"), "reasoning": "Hm, </thi nking"},
        assistant(THOUGHT),
    ):
        receipt = ask(site, user("Hi"), answer, user("And?")).json()["keepwarm"]
        assert (receipt["session_id"], receipt["miss_reason"], receipt["ignored"]) == (first, None, [])


def test_an_answer_that_is_cut_while_it_thinks_has_no_content(serve: Serve) -> None:
    site = thinker(serve)
    answered = ask(site, user("Hi"), max_tokens=12)
    assert parts(answered) == ("Hm, ", "")
    assert answered.json()["choices"][0]["finish_reason"] == "length"
    receipt = ask(site, user("Hi"), assistant(""), user("And?")).json()["keepwarm"]
    assert (receipt["session_id"], receipt["miss_reason"]) == (answered.json()["keepwarm"]["session_id"], None)


def test_imported_thoughts_reach_the_model(serve: Serve) -> None:
    site = thinker(serve)
    said = {**assistant("Aha"), "reasoning_content": "I see"}
    session = ask(site, user("Hi"), said, user("And?")).json()["keepwarm"]["session_id"]
    assert site.manager.view("local", session).messages[1].text == "<think>\nI see\n</think>\n\nAha"


def test_thoughts_for_a_model_that_has_none_are_named(site: Site) -> None:
    answered = ask(site, user("Hi"), {**assistant("Aha"), "reasoning_content": "I see"}, user("And?"))
    assert answered.json()["keepwarm"]["ignored"] == ["messages.reasoning_content"]
    refused = ask(site, {**user("Hi"), "reasoning_content": "I see"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages")


ON, OFF = {"enable_thinking": True}, {"enable_thinking": False}


@pytest.mark.parametrize(
    ("field", "variables"),
    [
        ({"enable_thinking": False}, OFF),
        ({"thinking": {"type": "disabled"}}, OFF),
        ({"thinking": {"type": "enabled"}}, ON),
        ({"reasoning_effort": "none"}, OFF),
        ({"chat_template_kwargs": {"enable_thinking": False}}, OFF),
        ({"chat_template_kwargs": {"thinking": False}}, OFF),
        ({"chat_template_kwargs": {"effort": "low"}, "enable_thinking": True}, {"effort": "low", **ON}),
    ],
)
def test_switches_reach_the_template(serve: Serve, field: dict[str, Any], variables: dict[str, Any]) -> None:
    site = serve(headless=True, template=WITH_SWITCH)
    answered = ask(site, user("Hi"), **field)
    assert answered.status_code == 200, answered.text
    receipt = answered.json()["keepwarm"]
    assert receipt["ignored"] == []
    stored = site.manager.view("local", receipt["session_id"]).settings.template_variables
    assert json.loads(stored) == variables


@pytest.mark.parametrize(
    ("options", "field", "outcome"),
    [
        ({}, {"enable_thinking": False}, ["enable_thinking"]),  # it does not think anyway
        ({}, {"reasoning_effort": "low"}, ["reasoning_effort"]),
        ({}, {"reasoning_effort": "none"}, ["reasoning_effort"]),
        ({}, {"chat_template_kwargs": {"enable_thinking": False}}, ["chat_template_kwargs.enable_thinking"]),
        ({}, {"enable_thinking": True}, "does not think"),
        ({}, {"chat_template_kwargs": {"date": "x"}}, "It reads no variables"),
        ({"has_thoughts": True}, {"enable_thinking": True}, ["enable_thinking"]),
        ({"has_thoughts": True}, {"enable_thinking": False}, "has no switch"),
        ({"has_thoughts": True}, {"reasoning_effort": "none"}, "has no switch"),
        ({"variables": ("effort",)}, {"chat_template_kwargs": {"efort": 1}}, "It reads effort."),
        ({"variables": ("effort",)}, {"chat_template_kwargs": {"messages": []}}, "does not read it"),
        ({"variables": ("effort",)}, {"chat_template_kwargs": {"effort": "x" * 5_000}}, "at most 4,096 characters"),
        ({"variables": ("effort",)}, {"chat_template_kwargs": {"effort": [{"a": 10**7}]}}, "at most 1,000,000"),
        ({"variables": ("enable_thinking",)}, {**ON, "thinking": {"type": "disabled"}}, "the opposite"),
        ({"variables": ("enable_thinking",)}, {"thinking": {"type": "enabled", "budget_tokens": 9}}, "must be"),
    ],
)
def test_what_a_template_does_not_read_is_said(
    serve: Serve, options: dict[str, Any], field: dict[str, Any], outcome: list[str] | str
) -> None:
    answered = ask(serve(headless=True, template=ByteTemplate(**options)), user("Hi"), **field)
    if isinstance(outcome, list):
        assert answered.json()["keepwarm"]["ignored"] == outcome
    else:
        assert answered.status_code == 400
        assert outcome in answered.json()["error"]["message"]
        assert answered.json()["error"]["param"].split(".")[0] in field


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("flags", [{}, {"continue_final_message": True, "add_generation_prompt": False}])
def test_an_assistants_message_last_is_gone_on_with(site: Site, streams: bool, flags: dict[str, bool]) -> None:
    answered = ask(site, user("Hello"), assistant("You sa"), stream=streams, **flags)
    assert parts(answered) == ("", "id: Hello")
    receipt = ask(site, user("Hello"), assistant("You said: Hello"), user("And?")).json()["keepwarm"]
    assert receipt["miss_reason"] is None
    assert receipt["reused"] > len("HelloYou said: Hello")


@pytest.mark.parametrize(
    ("messages", "flags", "named"),
    [
        ([user("a")], {"continue_final_message": True}, "continue_final_message"),
        ([user("a"), assistant("b")], {"continue_final_message": False}, "continue_final_message"),
        ([user("a")], {"add_generation_prompt": False}, "add_generation_prompt"),
        ([user("a"), assistant("b")], {"add_generation_prompt": True}, "add_generation_prompt"),
    ],
)
def test_flags_that_say_something_else_are_refused(
    site: Site, messages: list[Any], flags: dict[str, bool], named: str
) -> None:
    refused = ask(site, *messages, **flags)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, named)
