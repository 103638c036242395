"""Ollama's own Python client."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from ollama import Client, ResponseError
from pydantic import BaseModel

from tests.clients.conftest import FORECAST, PARAMETERS, QUESTION, TURNS, Loop, Server

TOOL: Any = {
    "type": "function",
    "function": {"name": "weather", "description": "The weather of a city.", "parameters": PARAMETERS},
}


class Forecast(BaseModel):
    """A forecast as most programs ask for one: nothing is said of other properties."""

    city: Literal["Oslo", "Bergen", "Tromso"]
    degrees: int


@pytest.fixture
def client(server: Server) -> Client:
    return Client(host=server.url)


def told(loop: Loop, last: Any, fed_tokens: int) -> None:
    loop.turn(last.prompt_eval_count, last.eval_count, fed_tokens)


@pytest.mark.parametrize("streams", [False, True])
def test_chats_stay_warm(client: Client, server: Server, loop: Loop, streams: bool) -> None:
    messages: list[Any] = [{"role": "system", "content": f"Answer in one short sentence ({streams})."}]
    options = {"num_predict": 24, "temperature": 0, "num_ctx": 8192}
    for turn in range(TURNS):
        messages.append({"role": "user", "content": f"Name a thing with {turn} eyes."})
        before = server.fed_tokens()
        if streams:
            text, last = "", None
            for last in client.chat(model=server.model, messages=messages, options=options, stream=True):
                text += last.message.content or ""
        else:
            last = client.chat(model=server.model, messages=messages, options=options)
            text = last.message.content
        assert last is not None
        assert last.done
        assert last.eval_duration > 0
        told(loop, last, server.fed_tokens() - before)
        messages.append({"role": "assistant", "content": text})


def test_tools_and_their_results_go_back_without_ids(client: Client, server: Server, loop: Loop) -> None:
    """Whether the model calls is its own choice in this protocol."""
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    for turn in range(TURNS):
        before = server.fed_tokens()
        last = client.chat(model=server.model, messages=messages, tools=[TOOL], options={"num_predict": 40})
        told(loop, last, server.fed_tokens() - before)
        messages += [last.message, {"role": "tool", "tool_name": "weather", "content": f"{turn} degrees"}]


def test_a_context_goes_on(client: Client, server: Server, loop: Loop) -> None:
    context: Any = None
    for turn in range(TURNS):
        before = server.fed_tokens()
        last = client.generate(
            model=server.model,
            prompt=f"Name a thing with {turn} pages.",
            context=context,
            options={"num_predict": 16},
        )
        told(loop, last, server.fed_tokens() - before)
        context = last.context


def test_formats_prompts_and_descriptions(client: Client, server: Server) -> None:
    made = client.chat(
        model=server.model,
        messages=[{"role": "user", "content": FORECAST}],
        format=Forecast.model_json_schema(),
        options={"num_predict": 120, "temperature": 0},
    )
    assert Forecast.model_validate_json(made.message.content)
    assert client.generate(model=server.model, prompt="Say hello.", options={"num_predict": 8}).response
    assert client.generate(model=server.model, prompt="Once upon", raw=True, options={"num_predict": 8}).eval_count == 8
    assert [model.model for model in client.list().models] == [server.model]
    assert client.show(server.model).modelinfo["keepwarm.context_length"] > 0
    assert client.ps().models[0].model == server.model
    with pytest.raises(ResponseError, match="no embedding model"):
        client.embed(model=server.model, input="x")
