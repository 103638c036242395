"""LangChain over four protocols, instructor and pydantic-ai."""

from __future__ import annotations

from typing import Any, Literal

import instructor
import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI
from openai import OpenAI
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.output import NativeOutput, ToolOutput
from pydantic_ai.providers.openai import OpenAIProvider

from tests.clients.conftest import CITIES, FORECAST, QUESTION, TURNS, Loop, Server

KEY: Any = "unused"


class Forecast(BaseModel):
    """A forecast as most programs ask for one: nothing is said of other properties."""

    city: Literal["Oslo", "Bergen", "Tromso"]
    degrees: int


def weather(city: str) -> str:
    """The weather of a city."""
    return f"{len(city)} degrees"


def langchain_models(server: Server) -> dict[str, Any]:
    return {
        "openai": ChatOpenAI(
            base_url=f"{server.url}/v1", api_key=KEY, model=server.model, max_tokens=120, temperature=0
        ),
        "responses": ChatOpenAI(
            base_url=f"{server.url}/v1",
            api_key=KEY,
            model=server.model,
            max_tokens=120,
            temperature=0,
            use_responses_api=True,
        ),
        "anthropic": ChatAnthropic(
            base_url=server.url, api_key=KEY, model_name=server.model, max_tokens_to_sample=120, temperature=0
        ),
        "ollama": ChatOllama(base_url=server.url, model=server.model, num_predict=120, temperature=0),
    }


@pytest.mark.parametrize("protocol", ["openai", "responses", "anthropic", "ollama"])
def test_langchain_stays_warm(server: Server, loop: Loop, protocol: str) -> None:
    model = langchain_models(server)[protocol]
    messages: list[BaseMessage] = [SystemMessage(f"Answer in one short sentence ({protocol}).")]
    for turn in range(TURNS):
        messages.append(HumanMessage(f"Name a thing with {turn} doors."))
        before = server.fed_tokens()
        answer = model.invoke(messages)
        assert isinstance(answer, AIMessage)
        usage = answer.usage_metadata
        assert usage is not None
        fed = server.fed_tokens() - before
        if protocol != "ollama":  # it has no place for what came from a cache
            cached = (usage.get("input_token_details") or {}).get("cache_read", 0)
            assert fed == usage["input_tokens"] - cached
        loop.turn(usage["input_tokens"], usage["output_tokens"], fed)
        messages.append(answer)


@pytest.mark.parametrize("protocol", ["openai", "responses", "anthropic"])
def test_langchain_calls_tools_in_ten_turns(server: Server, loop: Loop, protocol: str) -> None:
    model = langchain_models(server)[protocol].bind_tools([weather], tool_choice="any")
    messages: list[BaseMessage] = [HumanMessage(f"{QUESTION} ({protocol})")]
    for _ in range(TURNS):
        answer = model.invoke(messages)
        (call,) = answer.tool_calls
        usage = answer.usage_metadata
        cached = (usage.get("input_token_details") or {}).get("cache_read", 0)
        loop.turn(usage["input_tokens"], usage["output_tokens"], usage["input_tokens"] - cached)
        messages += [answer, ToolMessage(weather(str(call["args"].get("city", CITIES[0]))), tool_call_id=call["id"])]


@pytest.mark.parametrize("method", ["json_schema", "strict", "function_calling", "json_mode"])
def test_langchains_structured_output(server: Server, method: str) -> None:
    model = langchain_models(server)["openai"]
    if method == "strict":
        strict = model.with_structured_output(Forecast, method="json_schema", strict=True, include_raw=True)
        assert isinstance(strict.invoke(FORECAST)["parsed"], Forecast)
        return
    if method == "json_mode":
        found = model.with_structured_output(None, method=method).invoke(FORECAST)
        assert isinstance(found, dict)
    else:
        assert isinstance(model.with_structured_output(Forecast, method=method).invoke(FORECAST), Forecast)


@pytest.mark.parametrize("protocol", ["anthropic", "ollama"])
def test_langchains_structured_output_over_other_protocols(server: Server, protocol: str) -> None:
    model = langchain_models(server)[protocol]
    assert isinstance(model.with_structured_output(Forecast, method="json_schema").invoke(FORECAST), Forecast)


@pytest.mark.parametrize("mode", [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA])
def test_instructor(server: Server, mode: instructor.Mode) -> None:
    client = instructor.from_openai(OpenAI(base_url=f"{server.url}/v1", api_key=KEY), mode=mode)
    made = client.chat.completions.create(
        model=server.model,
        messages=[{"role": "user", "content": FORECAST}],
        response_model=Forecast,
        max_tokens=120,
        temperature=0,
        max_retries=3,
    )
    assert isinstance(made, Forecast)


@pytest.mark.parametrize("protocol", ["openai", "responses"])
@pytest.mark.parametrize("output", [ToolOutput(Forecast), NativeOutput(Forecast)], ids=["tool", "native"])
def test_pydantic_ai(server: Server, protocol: str, output: Any) -> None:
    openai = OpenAIProvider(base_url=f"{server.url}/v1", api_key=KEY)
    models: dict[str, Any] = {
        "openai": OpenAIChatModel(server.model, provider=openai),
        "responses": OpenAIResponsesModel(server.model, provider=openai),
    }
    agent = Agent(models[protocol], output_type=output, retries=3, model_settings={"temperature": 0, "max_tokens": 120})
    assert isinstance(agent.run_sync(FORECAST).output, Forecast)
