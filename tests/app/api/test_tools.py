"""Tools, and log-probabilities, over HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.app.api.conftest import MODEL, Connect, Serve, user
from tests.sessions.byte_template import END, TOOL, ByteTemplate

WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "description": "The weather.", "parameters": {"type": "object", "properties": {}}},
}


def caller(ledger: tuple[int, ...]) -> tuple[int, ...]:
    """Calls the tool once, then says what it said."""
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
