"""The real command with the embedded model: warm turns, log-probabilities, a restart between turns."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from tests.app.cli.test_keepwarm_serve import Process
from tests.app.conftest import user
from tests.polling import pause

pytestmark = [pytest.mark.embedded, pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Process]]:
    processes: list[Process] = []

    def run() -> Process:
        flags = ("--headless", "--no-read-ahead", "--prompt-lookup", "off", "--device-kv-budget", "512MiB")
        processes.append(Process(tmp_path / "data", *flags))
        return processes[-1]

    yield run
    for one in processes:
        if one.process.poll() is None:
            one.end(signal.SIGKILL)


def test_stateless_turns_are_warm_before_and_after_a_restart(start: Callable[[], Process]) -> None:
    messages: list[Any] = [{"role": "system", "content": "You answer in one sentence."}]
    total = 0

    def turn(client: OpenAI, text: str, tier: str) -> Any:
        nonlocal total
        messages.append(user(text))
        made = client.chat.completions.create(
            model="SmolLM2-135M-Instruct",
            messages=messages,
            max_tokens=16,
            temperature=0,
            logprobs=True,
            top_logprobs=2,
        )
        assert made.usage is not None
        assert made.usage.prompt_tokens_details is not None
        assert made.usage.prompt_tokens_details.cached_tokens == max(0, total - 1)
        assert made.model_extra is not None
        assert made.model_extra["keepwarm"]["tier_before"] == tier
        total = made.usage.total_tokens
        messages.append({"role": "assistant", "content": made.choices[0].message.content})
        return made

    first = start()
    with OpenAI(base_url=f"{first.url()}/v1", api_key="unused", max_retries=0) as client:
        made = turn(client, "Name a colour. " + "Think about paint. " * 60, "cold")
        told = made.choices[0].logprobs.content
        assert "".join(one.token for one in told) == made.choices[0].message.content
        assert all(one.logprob <= 0 and len(one.top_logprobs) == 2 for one in told)
        turn(client, "And another one?", "device")
    pause(0.5)
    first.end(signal.SIGTERM)
    assert first.process.returncode == 0
    assert not [line for line in first.lines if "Traceback" in line]
    second = start()
    with OpenAI(base_url=f"{second.url()}/v1", api_key="unused", max_retries=0) as client:
        turn(client, "Which of them is brighter?", "disk")
