"""llm, LiteLLM over five protocols, and smolagents."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tests.clients.conftest import CITIES, FORECAST, QUESTION, TURNS, Loop, Server

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise it asks the network at its import

import litellm
from smolagents import ActionStep, OpenAIModel, Tool, ToolCallingAgent

PROVIDERS = ("openai", "hosted_vllm", "anthropic", "ollama_chat", "llamafile")
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"enum": list(CITIES)}}, "required": ["city"]},
    },
}


class Forecast(BaseModel):
    """A forecast as most programs ask for one: nothing is said of other properties."""

    degrees: int
    is_warm: bool


class Weather(Tool):
    name = "weather"
    description = "The weather of a city."
    inputs = {"city": {"type": "string", "description": "its name"}}  # noqa: RUF012
    output_type = "string"

    def forward(self, city: str) -> str:
        return f"{len(city)} degrees"


@pytest.fixture
def llm(server: Server, tmp_path: Path) -> Any:
    """The command `llm` with this server as its model."""
    model = {"model_id": "kw", "model_name": server.model, "api_base": f"{server.url}/v1"}
    more = {"supports_tools": True, "supports_schema": True}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([model | more]))
    surroundings = {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "unused"}

    def call(*arguments: str) -> str:
        command = [sys.executable, "-m", "llm", *arguments]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=surroundings)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    return call


def test_llm_goes_on_with_its_conversation(llm: Any, server: Server) -> None:
    assert llm("-m", "kw", "Name a thing with one leg.", "-o", "max_tokens", "16").strip()
    for turn in range(3):
        before = server.fed_tokens()
        question = f"And with {turn}?"
        assert llm("-c", question, "-o", "max_tokens", "16").strip()
        assert server.fed_tokens() - before < 20
    schema = ("--schema", "city, degrees int")
    assert set(json.loads(llm("-m", "kw", *schema, FORECAST, "-o", "max_tokens", "120"))) == {"city", "degrees"}


def litellm_settings(server: Server, provider: str) -> dict[str, Any]:
    path = "" if provider in ("anthropic", "ollama_chat") else "/v1"
    return {"model": f"{provider}/{server.model}", "api_base": server.url + path, "api_key": "unused"}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_litellm_stays_warm(server: Server, loop: Loop, provider: str) -> None:
    messages: list[Any] = [{"role": "system", "content": f"Answer in one short sentence ({provider})."}]
    for turn in range(TURNS):
        messages.append({"role": "user", "content": f"Name a thing with {turn} knobs."})
        before = server.fed_tokens()
        made: Any = litellm.completion(messages=messages, max_tokens=16, **litellm_settings(server, provider))
        loop.turn(made.usage.prompt_tokens, made.usage.completion_tokens, server.fed_tokens() - before)
        messages.append(made.choices[0].message.model_dump())


@pytest.mark.parametrize("provider", PROVIDERS)
def test_litellm_calls_tools_and_gets_formats(server: Server, provider: str) -> None:
    settings = litellm_settings(server, provider)
    asked: list[Any] = [{"role": "user", "content": QUESTION}]
    if provider != "ollama_chat":  # that protocol forces no call
        made: Any = litellm.completion(messages=asked, tools=[TOOL], tool_choice="required", max_tokens=60, **settings)
        (call,) = made.choices[0].message.tool_calls
        assert json.loads(call.function.arguments)["city"] in CITIES
        result = {"role": "tool", "tool_call_id": call.id, "content": "9 degrees"}
        asked += [made.choices[0].message.model_dump(), result]
        assert litellm.completion(messages=asked, tools=[TOOL], max_tokens=8, **settings)
    made = litellm.completion(
        messages=[{"role": "user", "content": FORECAST}],
        response_format=Forecast,
        max_tokens=80,
        temperature=0,
        **settings,
    )
    assert Forecast.model_validate_json(made.choices[0].message.content)


def test_litellm_streams_responses_and_texts(server: Server) -> None:
    settings = litellm_settings(server, "openai")
    stream: Any = litellm.completion(
        messages=[{"role": "user", "content": "Count to three."}], max_tokens=12, stream=True, **settings
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    first: Any = litellm.responses(input="Say hello.", max_output_tokens=16, **settings)
    after: Any = litellm.responses(input="Again.", max_output_tokens=16, previous_response_id=first.id, **settings)
    assert after.usage.input_tokens_details.cached_tokens >= first.usage.input_tokens
    text: Any = litellm.text_completion(
        prompt="Once upon", max_tokens=8, **settings | {"model": f"text-completion-openai/{server.model}"}
    )
    assert text.choices[0].text


@pytest.mark.parametrize("streams", [False, True])
def test_smolagents_calls_tools(server: Server, streams: bool) -> None:
    """Every call that the model makes fits its tool. Whether it is of use is the model's affair."""
    model = OpenAIModel(model_id=server.model, api_base=f"{server.url}/v1", api_key="unused", max_tokens=120)
    agent = ToolCallingAgent(tools=[Weather()], model=model, max_steps=3, verbosity_level=0, stream_outputs=streams)
    agent.run(QUESTION)
    steps = [step for step in agent.memory.steps if isinstance(step, ActionStep) and step.tool_calls]
    assert steps
    assert not any("input schema" in str(step.error) for step in steps)
