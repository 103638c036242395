"""OpenAI's Agents SDK, with the conversations that it keeps on a server."""

from __future__ import annotations

import asyncio
from typing import Any

from agents import Agent, ModelSettings, OpenAIConversationsSession, OpenAIResponsesModel, Runner, set_tracing_disabled
from openai import AsyncOpenAI

from tests.clients.conftest import Loop, Server

CAPITALS = ("France", "Norway", "Spain", "Italy", "Peru", "Japan", "Chile", "Kenya", "India", "Ghana")


def test_an_agent_keeps_its_history_as_items_of_a_conversation(server: Server, loop: Loop) -> None:
    async def converse() -> None:
        set_tracing_disabled(disabled=True)
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
            session = OpenAIConversationsSession(openai_client=client)
            settings = ModelSettings(max_tokens=400, temperature=0)
            model: Any = OpenAIResponsesModel(server.model, openai_client=client)
            agent = Agent(name="Helper", instructions="You help with capitals.", model=model, model_settings=settings)
            for country in CAPITALS:
                before = server.fed_tokens()
                result = await Runner.run(agent, f"The capital of {country}? One word.", session=session)
                usage = result.context_wrapper.usage
                loop.turn(usage.input_tokens, usage.output_tokens, server.fed_tokens() - before)
            assert len(await session.get_items()) == 2 * len(CAPITALS)
            last = await session.pop_item()
            assert last is not None
            assert len(await session.get_items()) == 2 * len(CAPITALS) - 1
            await session.clear_session()

    with asyncio.Runner() as runner:
        runner.run(converse())
