"""Clients that resend their history to one model, to another, and to the first again: each model finds its own part
on disk."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sessions.types import MessageView, MissReason, Tier
from tests.sessions.byte_template import ByteTemplate
from tests.sessions.conftest import MakeHarness
from tests.sessions.scripted_engine import ScriptedEngine
from tests.sessions.session_harness import SessionHarness
from tests.sessions.turns.test_stateless import Client

BUDGET_BYTES = 2**26
Make = Callable[[], SessionHarness]
# Reading is slow enough that restoring even a short history from disk is worth it.
SLOW = {"fed_token_delay_s": 0.001}


@pytest.fixture(params=["same tokenizer", "another tokenizer"])
def makers(request: pytest.FixtureRequest, make_harness: MakeHarness) -> tuple[Make, Make]:
    """Starts the server with model A, and with model B."""

    def a() -> SessionHarness:
        return make_harness(disk_kv_budget_bytes=BUDGET_BYTES, engine=ScriptedEngine(**SLOW))  # type: ignore[arg-type]

    def b() -> SessionHarness:
        if request.param == "same tokenizer":
            engine, template = ScriptedEngine(name="Other-1B", **SLOW), ByteTemplate()  # type: ignore[arg-type]
        else:
            engine = ScriptedEngine(name="Other-1B", tokenizer_fingerprint="shifted", **SLOW)  # type: ignore[arg-type]
            template = ByteTemplate(shift=1000)
        return make_harness(disk_kv_budget_bytes=BUDGET_BYTES, engine=engine, template=template)

    return a, b


def restarted(harness: SessionHarness, client: Client, make: Make) -> SessionHarness:
    """Restarts the server; the client does not notice."""
    harness.saved(client.conversation_id)
    harness.close()
    client.harness = make()
    return client.harness


def is_right(harness: SessionHarness, client: Client, answer: MessageView) -> bool:
    """Whether the answer is right, up to its limit of new tokens."""
    return harness.expected_text(client.conversation_id).startswith(answer.text.rstrip("\ufffd"))


@pytest.mark.parametrize("key", [None, "chat-1"])
@pytest.mark.parametrize("turns", [1, 3])
def test_a_then_b_goes_on_then_a_again(makers: tuple[Make, Make], key: str | None, turns: int) -> None:
    a, b = makers
    harness = a()
    client = Client(harness, key)
    client.ask("Hello, who are you?")  # 34 tokens: less than what conversations can share
    own_tokens = len(harness.ledger(client.conversation_id))
    harness = restarted(harness, client, b)
    for number in range(turns):
        client.ask(f"Now you, {number}.")
    harness = restarted(harness, client, a)
    answer = client.ask("And the first one again?")
    receipt = harness.receipt(answer)
    assert is_right(harness, client, answer)
    assert receipt.tier_before is Tier.DISK
    assert receipt.reused_tokens >= own_tokens - 1
    assert receipt.miss_reason in (None, MissReason.MODEL_CHANGED)
    harness = restarted(harness, client, a)
    receipt = harness.receipt(client.ask("Warm now?"))
    assert (receipt.tier_before, receipt.miss_reason) == (Tier.DISK, None)
    assert receipt.fed_tokens == receipt.delta_tokens


def test_b_is_warm_again_too(makers: tuple[Make, Make]) -> None:
    a, b = makers
    harness = a()
    client = Client(harness)
    client.ask("Hello")
    harness = restarted(harness, client, b)
    client.ask("Now you.")
    harness = restarted(harness, client, a)
    client.ask("And the first one.")
    harness = restarted(harness, client, b)
    receipt = harness.receipt(client.ask("And the second."))
    assert receipt.tier_before is Tier.DISK
    assert receipt.reused_tokens > len("Now you.")


def test_an_answer_of_another_model_is_not_mistaken_for_its_own(makers: tuple[Make, Make]) -> None:
    """Both got the same question after the same history: each continues with the answer that the client sends."""
    a, b = makers
    harness = a()
    client = Client(harness)
    client.ask("Hello")
    before = list(client.messages)
    client.ask("A question to both")
    of_a = list(client.messages)
    client.messages = before
    harness = restarted(harness, client, b)
    client.ask("A question to both")
    of_b = list(client.messages)
    client.messages = list(of_a)
    harness = restarted(harness, client, a)
    answer = client.ask("And?")
    assert harness.texts(client.conversation_id)[:-1] == [message.text for message in client.messages[:-1]]
    assert is_right(harness, client, answer)
    client.messages = list(of_b)
    answer = client.ask("And?")
    assert harness.texts(client.conversation_id)[:-1] == [message.text for message in client.messages[:-1]]
    assert is_right(harness, client, answer)
