"""Anthropic's own Python client."""

from __future__ import annotations

from typing import Any

import pytest
from anthropic import Anthropic, BadRequestError
from anthropic.types import Usage

from tests.clients.conftest import CITIES, PARAMETERS, QUESTION, TURNS, Loop, Server

TOOL: Any = {"name": "weather", "description": "The weather of a city.", "input_schema": PARAMETERS}
EPHEMERAL: Any = {"type": "ephemeral"}


@pytest.fixture
def client(server: Server) -> Anthropic:
    return Anthropic(base_url=server.url, api_key="unused", max_retries=0)


def told(loop: Loop, usage: Usage) -> None:
    fed = usage.input_tokens + (usage.cache_creation_input_tokens or 0)
    loop.turn(fed + (usage.cache_read_input_tokens or 0), usage.output_tokens, fed)


@pytest.mark.parametrize("streams", [False, True])
def test_messages_call_tools_in_ten_turns(client: Anthropic, server: Server, loop: Loop, streams: bool) -> None:
    system: Any = [{"type": "text", "text": f"Use the tool ({streams}).", "cache_control": EPHEMERAL}]
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    asked: dict[str, Any] = {"model": server.model, "max_tokens": 120, "system": system, "tools": [TOOL]}
    for turn in range(TURNS):
        now = {**asked, "messages": messages, "tool_choice": {"type": "any"}}
        if streams:
            with client.messages.stream(**now) as stream:
                message = stream.get_final_message()
        else:
            message = client.messages.create(**now)
        assert message.stop_reason == "tool_use"
        (call,) = message.content
        assert call.input["city"] in CITIES
        told(loop, message.usage)
        result = {"type": "tool_result", "tool_use_id": call.id, "content": f"{turn} degrees"}
        messages += [
            {"role": "assistant", "content": [block.to_dict() for block in message.content]},
            {"role": "user", "content": [result]},
        ]


def test_messages_stream_text_and_stay_warm(client: Anthropic, server: Server, loop: Loop) -> None:
    messages: list[Any] = []
    for turn in range(TURNS):
        messages.append({"role": "user", "content": f"Name a thing with {turn} wheels."})
        with client.messages.stream(model=server.model, max_tokens=24, messages=messages) as stream:
            text = "".join(stream.text_stream)
            message = stream.get_final_message()
        assert [block.text for block in message.content] == [text]
        told(loop, message.usage)
        messages.append({"role": "assistant", "content": text})


def test_prompts_are_counted_and_pictures_refused(client: Anthropic, server: Server) -> None:
    messages: list[Any] = [{"role": "user", "content": "Count me."}]
    count = client.messages.count_tokens(model=server.model, messages=messages).input_tokens
    usage = client.messages.create(model=server.model, max_tokens=4, messages=messages).usage
    assert count == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    with pytest.raises(BadRequestError, match="reads no pictures"):
        client.messages.create(
            model=server.model,
            max_tokens=4,
            messages=[{"role": "user", "content": [picture]}],  # type: ignore[list-item]
        )


def test_models_are_listed(client: Anthropic, server: Server) -> None:
    assert [model.id for model in client.models.list()] == [server.model]
