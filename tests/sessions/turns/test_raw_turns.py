"""Prompts without a chat on the real engine: warm answers equal those of one full read of the same ids."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from model_runtime.interface.sampling_params import SamplingParams
from sessions.ledger.ledger import common_prefix
from sessions.manager import SessionManager
from sessions.memory.device.shared_prefixes import LEAST_TOKENS
from sessions.store.store import Store
from sessions.turns.raw_turns import RawRequest
from sessions.types import MessageView
from tests.model_runtime.harness import WatchedEngine
from tests.model_runtime.tiny_models import tiny_llama
from tests.sessions.real_session_harness import load, manager_of
from tests.sessions.session_harness import ADA, finish

SAMPLING = SamplingParams(temperature=0.0, max_new_tokens=6)


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory, torch_threads: int) -> Iterator[SessionManager]:
    directory = tmp_path_factory.mktemp("raw")
    loaded = load(tiny_llama(directory / "model"))
    engine, store = WatchedEngine(loaded), Store(directory / "data")
    manager = manager_of(store, engine, loaded)
    manager.start()
    yield manager
    manager.close()
    engine.close()
    store.close()


def ask(manager: SessionManager, owner: str, prompt: str | tuple[int, ...]) -> tuple[MessageView, tuple[int, ...]]:
    """(the answer, the ids that it was asked with)."""
    run = manager.raw_completions.begin(owner, RawRequest(prompt, SAMPLING))
    return finish(run), run.plan.turn.ledger


@pytest.mark.parametrize("stops", [(), (" ",), ("e",)])
def test_warm_answers_equal_those_of_a_full_read(manager: SessionManager, stops: tuple[str, ...]) -> None:
    text, before = f"The harbour in the morning {stops}", 0
    for turn in range(4):
        # Room behind the stop string: what is left of its first token may have more ids than that had.
        sampling = SamplingParams(temperature=0.0, max_new_tokens=24 if stops else 6, stop_strings=stops)
        run = manager.raw_completions.begin(ADA, RawRequest(text, sampling))
        answer = finish(run)
        receipt, ledger = answer.receipt, run.plan.turn.ledger
        assert receipt is not None
        assert receipt.miss_reason is None
        assert receipt.fed_tokens <= len(ledger) - max(0, before - 1)
        cold = manager.raw_completions.begin(f"cold {turn} {stops}", RawRequest(ledger, sampling))
        assert finish(cold).text == answer.text
        assert cold.sampled == run.sampled
        before = len(ledger) + len(run.sampled)
        text += f"{answer.text}, and {turn}"


def test_a_prompt_that_goes_on_elsewhere_is_a_place_of_its_own(manager: SessionManager) -> None:
    first, _ = ask(manager, "bob", "A long beginning that both have")
    one, _ = ask(manager, "bob", f"A long beginning that both have{first.text} then one")
    other, ids = ask(manager, "bob", f"A long beginning that both have{first.text} then another")
    again, _ = ask(manager, "carol", ids)
    assert other.text == again.text
    assert {message.status for message in (first, one, other)} == {first.status}


def test_four_at_once_read_one_beginning_and_answer_as_alone(manager: SessionManager) -> None:
    """Three wait for the first one's reading, or copy its rows while it answers; each answers as a full read does. One
    that comes while less than `LEAST_TOKENS` are left of that reading does not wait for them, and reads them itself."""
    beginning = "The harbour wakes before the town, and the boats come in one by one. " * 6
    requests = [RawRequest(f"{beginning}{number}?", SAMPLING) for number in range(4)]
    runs = [manager.raw_completions.begin("dora", request) for request in requests]
    answers = [finish(run) for run in runs]
    first, *others = [answer.receipt for answer in answers if answer.receipt is not None]
    common = common_prefix(runs[0].plan.turn.ledger, runs[1].plan.turn.ledger)
    assert (first.shared_tokens, first.fed_tokens) == (0, len(runs[0].plan.turn.ledger))
    for run, receipt in zip(runs[1:], others, strict=True):
        assert common - LEAST_TOKENS < receipt.shared_tokens <= common
        assert receipt.fed_tokens == len(run.plan.turn.ledger) - receipt.shared_tokens
    for number, (run, answer) in enumerate(zip(runs, answers, strict=True)):
        alone = manager.raw_completions.begin(f"alone {number}", RawRequest(run.plan.turn.ledger, SAMPLING))
        assert finish(alone).text == answer.text
        assert alone.sampled == run.sampled
