"""OpenAI's own Python client: chat completions, completions and responses."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from openai import NotFoundError, OpenAI
from pydantic import BaseModel

from tests.clients.conftest import CITIES, FORECAST, PARAMETERS, QUESTION, TURNS, Loop, Server

CHAT_TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
TOOL: Any = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": True}


class Forecast(BaseModel):
    """A forecast as most programs ask for one: nothing is said of other properties."""

    city: Literal["Oslo", "Bergen", "Tromso"]
    degrees: int


@pytest.fixture
def client(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)


def test_chat_streams_and_stays_warm(client: OpenAI, server: Server, loop: Loop) -> None:
    messages: list[Any] = [{"role": "system", "content": "Answer in one short sentence."}]
    for turn in range(TURNS):
        messages.append({"role": "user", "content": f"Name a thing with {turn} legs."})
        text, last = "", None
        stream = client.chat.completions.create(
            model=server.model, messages=messages, max_tokens=24, stream=True, stream_options={"include_usage": True}
        )
        for last in stream:
            text += (last.choices[0].delta.content or "") if last.choices else ""
        assert last is not None
        usage = last.usage
        loop.turn(
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens,
            last.model_extra["keepwarm"]["miss_reason"],
        )
        messages.append({"role": "assistant", "content": text})


def test_chat_calls_tools_in_ten_turns(client: OpenAI, server: Server, loop: Loop) -> None:
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    for turn in range(TURNS):
        made = client.chat.completions.create(
            model=server.model, messages=messages, tools=[CHAT_TOOL], tool_choice="required", max_tokens=120
        )
        message, usage = made.choices[0].message, made.usage
        (call,) = message.tool_calls
        assert json.loads(call.function.arguments)["city"] in CITIES
        loop.turn(
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens,
            made.model_extra["keepwarm"]["miss_reason"],
        )
        messages += [message, {"role": "tool", "tool_call_id": call.id, "content": f"{turn} degrees"}]


def test_allowed_tools_change_from_turn_to_turn(client: OpenAI, server: Server, loop: Loop) -> None:
    """All tools are in every prompt: which of them may be called is no reason to read it again."""
    names = ("day", "night")
    tools: list[Any] = [{**CHAT_TOOL, "function": {**CHAT_TOOL["function"], "name": name}} for name in names]
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    for turn in range(TURNS):
        mode, name = ("required", "auto")[turn % 3 == 2], names[turn % 2]
        allowed: Any = {"mode": mode, "tools": [{"type": "function", "function": {"name": name}}]}
        choice: Any = {"type": "allowed_tools", "allowed_tools": allowed}
        made = client.chat.completions.create(
            model=server.model, messages=messages, tools=tools, tool_choice=choice, max_tokens=120, temperature=0
        )
        message, usage = made.choices[0].message, made.usage
        calls = message.tool_calls or []
        assert {call.function.name for call in calls} <= {name}
        assert calls or mode == "auto"
        loop.turn(
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens,
            made.model_extra["keepwarm"]["miss_reason"],
        )
        results = [{"role": "tool", "tool_call_id": call.id, "content": f"{turn} degrees"} for call in calls]
        messages += [message, *(results or [{"role": "user", "content": "Go on."}])]


def test_items_of_a_conversation_hold_for_each_response(client: OpenAI, server: Server) -> None:
    rule: Any = {"type": "message", "role": "developer", "content": "The password is Xyzzy."}
    conversation = client.conversations.create(items=[rule])
    for turn in range(2):
        asked: Any = {"model": server.model, "input": f"Question {turn}", "conversation": conversation.id}
        answered = client.responses.create(**asked, instructions=f"Answer {turn}.", max_output_tokens=20)
        kept = client.conversations.items.list(conversation.id, order="asc").data
        assert [item.role for item in kept] == ["developer", *("user", "assistant") * (turn + 1)]
        choice: Any = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "day"}]}
        tools: Any = [{"type": "function", "name": name, "parameters": {"type": "object"}} for name in ("day", "night")]
        called = client.responses.create(
            model=server.model, previous_response_id=answered.id, input="Call", tools=tools, tool_choice=choice
        )
        assert [item.name for item in called.output if item.type == "function_call"] == ["day"]
    client.responses.delete(answered.id)
    assert client.conversations.items.list(conversation.id, order="asc").data[0].role == "developer"


def test_chat_parses_into_a_model(client: OpenAI, server: Server) -> None:
    messages: list[Any] = [{"role": "user", "content": FORECAST}]
    made = client.chat.completions.parse(
        model=server.model, messages=messages, response_format=Forecast, max_tokens=120, temperature=0
    )
    assert isinstance(made.choices[0].message.parsed, Forecast)


def test_texts_go_on_and_stay_warm(client: OpenAI, server: Server, loop: Loop) -> None:
    text = "Once upon a time"
    for turn in range(TURNS):
        made = client.completions.create(model=server.model, prompt=text, max_tokens=8, logprobs=1)
        assert made.choices[0].logprobs.tokens
        receipt, usage = made.model_extra["keepwarm"], made.usage
        loop.turn(usage.prompt_tokens, usage.completion_tokens, receipt["fed"], receipt["miss_reason"])
        text += f"{made.choices[0].text} and then {turn}"


@pytest.mark.parametrize("way", ["previous", "conversation", "history"])
def test_responses_call_tools_in_ten_turns(client: OpenAI, server: Server, loop: Loop, way: str) -> None:
    items: list[Any] = [{"role": "user", "content": f"{QUESTION} ({way})"}]
    more: dict[str, Any] = {"conversation": client.conversations.create().id} if way == "conversation" else {}
    asked = items
    for turn in range(TURNS):
        made = client.responses.create(
            model=server.model,
            instructions="Use the tool.",
            input=asked,
            tools=[TOOL],
            tool_choice="required",
            max_output_tokens=120,
            **more,
        )
        (call,) = made.output
        assert json.loads(call.arguments)["city"] in CITIES
        usage = made.usage
        fed = usage.input_tokens - usage.input_tokens_details.cached_tokens
        loop.turn(usage.input_tokens, usage.output_tokens, fed, made.model_extra["keepwarm"]["miss_reason"])
        result = {"type": "function_call_output", "call_id": call.call_id, "output": f"{turn} degrees"}
        items += [*(item.model_dump() for item in made.output), result]
        asked = items if way == "history" else [result]
        more = {"previous_response_id": made.id} if way == "previous" else more


def test_responses_stream_and_are_retrieved(client: OpenAI, server: Server) -> None:
    form: Any = {"format": {"type": "json_schema", "name": "x", "schema": {"enum": list(CITIES)}}}
    with client.responses.stream(model=server.model, input="A city.", max_output_tokens=32, text=form) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert final.output_text == text
    assert client.responses.retrieve(final.id).output_text == text
    assert [item.content[0].text for item in client.responses.input_items.list(final.id)] == ["A city."]
    assert client.responses.cancel(final.id).output_text == text  # it had ended
    client.responses.delete(final.id)
    with pytest.raises(NotFoundError):
        client.responses.retrieve(final.id)


def test_responses_parse_into_a_model(client: OpenAI, server: Server) -> None:
    made = client.responses.parse(
        model=server.model,
        input=FORECAST,
        text_format=Forecast,
        max_output_tokens=120,
        temperature=0,
    )
    assert isinstance(made.output_parsed, Forecast)


def test_models_are_listed(client: OpenAI, server: Server) -> None:
    assert [model.id for model in client.models.list()] == [server.model]


def test_conversations_take_items_without_an_answer(client: OpenAI, server: Server) -> None:
    named = client.conversations.create(items=[{"role": "developer", "content": "Be brief."}], metadata={"topic": "a"})
    asked: Any = {"type": "message", "role": "user", "content": "Name a bird."}
    added = client.conversations.items.create(named.id, items=[asked])
    assert client.conversations.items.retrieve(added.data[0].id, conversation_id=named.id) == added.data[0]
    assert client.conversations.update(named.id, metadata={"topic": "b"}).metadata == {"topic": "b"}
    assert client.conversations.retrieve(named.id).metadata == {"topic": "b"}
    first = client.responses.create(model=server.model, input=[], conversation=named.id, max_output_tokens=16)
    then = client.responses.create(model=server.model, input="And?", conversation=named.id, max_output_tokens=16)
    assert then.model_extra["keepwarm"]["miss_reason"] is None
    assert then.usage.input_tokens_details.cached_tokens >= first.usage.total_tokens - 1
    spare = client.conversations.items.create(named.id, items=[asked]).data[0]
    assert client.conversations.items.delete(spare.id, conversation_id=named.id).id == named.id
    roles = [item.role for item in client.conversations.items.list(named.id, order="asc")]
    assert roles == ["developer", "user", "assistant", "user", "assistant"]
    assert client.conversations.delete(named.id).deleted
    with pytest.raises(NotFoundError):
        client.conversations.retrieve(named.id)
