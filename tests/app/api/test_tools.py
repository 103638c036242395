"""Tools, and log-probabilities, over HTTP."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from app.api.translation.tools import GENERIC
from model_runtime.text.generic_tools import GenericTools
from tests.app.conftest import MODEL, Connect, Serve, user
from tests.sessions.byte_template import END, TOOL, ByteTemplate

WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "description": "The weather.", "parameters": {"type": "object", "properties": {}}},
}


def caller(ledger: tuple[int, ...]) -> tuple[int, ...]:
    """Calls the tool once, then repeats its result."""
    if TOOL in ledger:
        start = max(n for n, token in enumerate(ledger) if token == TOOL)
        said = bytes(token for token in ledger[start:] if token < 256).decode()
        return (*f"It is {said}.".encode(), END)
    return (*b'Let me see. <tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>', END)


@pytest.mark.parametrize("streams", [False, True])
def test_a_call_its_result_and_the_answer_stay_warm(serve: Serve, connect: Connect, streams: bool) -> None:
    site = serve(headless=True, template=ByteTemplate(takes_tools=True), answer=caller)
    client, messages = connect(site), [user("Weather in Oslo?")]

    def ask() -> tuple[str, list[Any], str | None, Any]:
        if not streams:
            made = client.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER])  # type: ignore[call-overload]
            choice = made.choices[0]
            return choice.message.content, choice.message.tool_calls or [], choice.finish_reason, made.usage
        chunks = list(
            client.chat.completions.create(  # type: ignore[call-overload]
                model=MODEL, messages=messages, tools=[WEATHER], stream=True, stream_options={"include_usage": True}
            )
        )
        deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
        calls = [call for delta in deltas for call in delta.tool_calls or []]
        reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
        return "".join(delta.content or "" for delta in deltas), calls, reasons[-1], chunks[-1].usage

    content, calls, reason, usage = ask()
    assert (content, reason) == ("Let me see. ", "tool_calls")
    (call,) = calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Oslo"})
    said = {"id": call.id, "type": "function", "function": {"name": "weather", "arguments": call.function.arguments}}
    messages += [
        {"role": "assistant", "content": content, "tool_calls": [said]},
        {"role": "tool", "tool_call_id": call.id, "content": "18 degrees"},
    ]
    content, calls, reason, after = ask()
    assert (content, calls, reason) == ("It is 18 degrees.", [], "stop")
    assert after.prompt_tokens_details.cached_tokens == usage.total_tokens - 1
    assert len(site.manager.list_conversations("local")) == 1


def test_tools_that_are_not_to_be_used_are_not_shown(serve: Serve, connect: Connect) -> None:
    site = serve(headless=True, template=ByteTemplate(takes_tools=True))
    made = connect(site).chat.completions.create(
        model=MODEL, messages=[user("Hello")], tools=[WEATHER], tool_choice="none"
    )  # type: ignore[call-overload]
    assert made.choices[0].message.content == "You said: Hello"


@pytest.mark.parametrize(
    "nested", ["[" * 1_100, '{"a":' * 1_100, '{"name": "f", "arguments": ' + "[" * 1_100 + "]" * 1_100]
)
def test_a_call_that_nests_without_end_is_text_and_the_stream_ends(serve: Serve, connect: Connect, nested: str) -> None:
    said = f"<tool_call>\n{nested}"
    site = serve(
        headless=True,
        template=ByteTemplate(takes_tools=True),
        config={"device_kv_budget_bytes": 1 << 30},
        answer=lambda _: (*said.encode(), END),
        context_limit_tokens=16_384,
    )
    body = {"model": MODEL, "messages": [user("Weather?")], "tools": [WEATHER], "max_tokens": 8_000}
    with httpx.Client(base_url=site.url, timeout=60) as http:
        whole = http.post("/v1/chat/completions", json=body)
        assert (whole.status_code, whole.json()["choices"][0]["message"]["content"]) == (200, said)
        streamed = http.post("/v1/chat/completions", json=body | {"stream": True}).text
    events = [line.removeprefix("data: ") for line in streamed.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    assert "".join(c["delta"].get("content", "") for e in events[:-1] for c in json.loads(e)["choices"]) == said


def test_nested_arguments_are_kept_and_nested_tools_are_sentences(serve: Serve) -> None:
    site = serve(headless=True, template=ByteTemplate(takes_tools=True))
    with httpx.Client(base_url=site.url, timeout=60) as http:
        for arguments in ("[" * 300, "[" * 3_000, "{city", ""):
            call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
            messages = [user("u"), {"role": "assistant", "tool_calls": [call]}, user("v")]
            kept = http.post("/v1/chat/completions", json={"model": MODEL, "messages": messages, "tools": [WEATHER]})
            assert kept.status_code == 200, kept.text
            view = site.manager.view("local", kept.json()["keepwarm"]["session_id"])
            assert json.dumps({"name": "f", "arguments": arguments}) in view.messages[1].text
        for depth in (900, 3_000):
            parameters = '{"a":' * depth + "1" + "}" * depth
            tool = f'{{"type": "function", "function": {{"name": "f", "parameters": {parameters}}}}}'
            text = f'{{"model": "{MODEL}", "messages": [{{"role": "user", "content": "u"}}], "tools": [{tool}]}}'
            answered = http.post("/v1/chat/completions", content=text, headers={"Content-Type": "application/json"})
            assert answered.status_code in (200, 400), answered.text
            assert "Traceback" not in answered.text


def generic_caller(ledger: tuple[int, ...]) -> tuple[int, ...]:
    """Calls the tool that its prompt describes once, then repeats its result."""
    text = bytes(token for token in ledger if token < 256).decode()
    if "<tool_response>" in text.partition("</tools>")[2].partition("</tool_response>. When")[2]:
        result = text.rpartition("<tool_response>\n")[2].partition("\n")[0]
        return (*f"It is {result}.".encode(), END)
    assert '"name": "weather"' in text
    return (*b'Let me see. <tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>', END)


def test_a_model_whose_template_has_no_tools_calls_them_too(serve: Serve) -> None:
    site = serve(headless=True, template=GenericTools(ByteTemplate()), answer=generic_caller)
    messages: list[Any] = [{"role": "system", "content": "Be brief."}, user("Weather in Oslo?")]
    with httpx.Client(base_url=site.url, timeout=60) as http:
        first = http.post(
            "/v1/chat/completions", json={"model": MODEL, "messages": messages, "tools": [WEATHER]}
        ).json()
        (call,) = first["choices"][0]["message"]["tool_calls"]
        assert first["keepwarm"]["notes"] == [GENERIC]
        messages += [
            first["choices"][0]["message"],
            {"role": "tool", "tool_call_id": call["id"], "content": "18 degrees"},
        ]
        then = http.post("/v1/chat/completions", json={"model": MODEL, "messages": messages, "tools": [WEATHER]}).json()
    assert then["choices"][0]["message"]["content"] == "It is 18 degrees."
    assert then["usage"]["prompt_tokens_details"]["cached_tokens"] == first["usage"]["total_tokens"] - 1
    assert site.manager.view("local", first["keepwarm"]["session_id"]).settings.system_prompt == "Be brief."


def test_tools_that_would_fill_the_context_are_left_out_and_named(serve: Serve) -> None:
    """As the first message of a client with 36 tools to a small model."""
    site = serve(headless=True, template=GenericTools(ByteTemplate()))
    many = [{"type": "function", "function": {"name": f"f{n}", "description": "x" * 200}} for n in range(36)]
    with httpx.Client(base_url=site.url, timeout=60) as http:
        body = {"model": MODEL, "messages": [user("Hello")], "tools": many, "tool_choice": "auto"}
        answered = http.post("/v1/chat/completions", json=body).json()
    assert answered["choices"][0]["message"]["content"] == "You said: Hello"
    assert answered["keepwarm"]["ignored"] == ["tools"]
    assert "at most 4,096 are shown to this model: it saw none" in answered["keepwarm"]["notes"][0]


@pytest.mark.parametrize("streams", [False, True])
def test_an_answer_ends_after_its_first_call_where_no_more_are_wanted(serve: Serve, streams: bool) -> None:
    call = '<tool_call>{{"name": "weather", "arguments": {{"city": "{}"}}}}</tool_call>'
    said = f"Let me see. {call.format('Oslo')}\n{call.format('Bergen')}"

    def both(ledger: tuple[int, ...]) -> tuple[int, ...]:
        return caller(ledger) if TOOL in ledger else (*said.encode(), END)

    site = serve(headless=True, template=ByteTemplate(takes_tools=True), answer=both)
    body: Any = {"model": MODEL, "messages": [user("Weather?")], "tools": [WEATHER]}
    with httpx.Client(base_url=site.url, timeout=30) as http:

        def ask(**more: Any) -> Any:
            answered = http.post("/v1/chat/completions", json=body | more)
            if not more.get("stream"):
                return answered.json()["choices"][0]["message"], answered.json()["keepwarm"]
            events = [json.loads(e[6:]) for e in answered.text.split("\n\n") if e.startswith("data: {")]
            deltas = [choice["delta"] for one in events for choice in one["choices"]]
            calls = [{k: v for k, v in c.items() if k != "index"} for d in deltas for c in d.get("tool_calls", ())]
            text = "".join(d.get("content") or "" for d in deltas)
            return {"role": "assistant", "content": text, "tool_calls": calls}, events[-1]["keepwarm"]

        assert len(ask()[0]["tool_calls"]) == 2
        body["messages"] = [user("And the weather?")]
        message, first = ask(parallel_tool_calls=False, stream=streams)
        (made,) = message["tool_calls"]
        assert json.loads(made["function"]["arguments"]) == {"city": "Oslo"}
        body["messages"] += [message, {"role": "tool", "tool_call_id": made["id"], "content": "18"}]
        _, after = ask()
    assert (after["session_id"], after["miss_reason"]) == (first["session_id"], None)
    assert after["fed"] == len("18") + 4  # what closes the answer, the result between its marks, the generation prompt


@pytest.mark.parametrize("name", ["mcp__" + "x" * 90, "mcp:weather", "server/weather", "wetter_für_morgen"])
def test_any_plain_name_of_a_tool_is_taken(serve: Serve, name: str) -> None:
    """Programs put a server's name before that of its tool."""
    said = (*f'<tool_call>{{"name": "{name}", "arguments": {{}}}}</tool_call>'.encode(), END)
    site = serve(headless=True, template=ByteTemplate(takes_tools=True), answer=lambda _: said)
    tool = {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    flat = {"name": name, "input_schema": {"type": "object"}}
    with httpx.Client(base_url=site.url, timeout=30) as http:
        made = http.post("/v1/chat/completions", json={"model": MODEL, "messages": [user("Hi")], "tools": [tool]})
        assert made.json()["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == name
        body = {"model": MODEL, "messages": [user("Hello")], "max_tokens": 200, "tools": [flat]}
        assert http.post("/v1/messages", json=body).json()["content"][-1]["name"] == name
        asked = {"model": MODEL, "input": "Hey", "tools": [{"type": "function", **tool["function"]}]}  # type: ignore[dict-item]
        assert http.post("/v1/responses", json=asked).json()["output"][-1]["name"] == name
        for bad in ("", "a b", 'a"b', "a\nb", "<a>"):
            refused = {**tool, "function": {"name": bad}}
            body = {"model": MODEL, "messages": [user("Hi")], "tools": [refused]}
            assert http.post("/v1/chat/completions", json=body).status_code == 400, bad
