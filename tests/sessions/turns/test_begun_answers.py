"""A last message from the assistant is gone on with: with its own ids where it is known, and in one piece for the next
turn."""

from __future__ import annotations

import pytest

from model_runtime.interface.chat import ChatMessage, ToolCall
from model_runtime.interface.sampling_params import SamplingParams
from sessions.errors import MessageRefused
from sessions.turns.planned_turn import ChatRequest
from sessions.turns.run import Run
from tests.sessions.byte_template import END, ByteTemplate
from tests.sessions.conftest import MakeHarness
from tests.sessions.scripted_engine import ScriptedEngine
from tests.sessions.session_harness import ADA, SessionHarness, finish

LONG = "It is a long way to go. " * 30
Said = list[ChatMessage]


def user(text: str) -> ChatMessage:
    return ChatMessage("user", text)


def assistant(text: str, thoughts: str = "") -> ChatMessage:
    return ChatMessage("assistant", text, thoughts=thoughts)


def begin(harness: SessionHarness, *messages: ChatMessage, most: int = 2_000) -> Run:
    return harness.manager.completions.begin(ADA, ChatRequest(messages, SamplingParams(0, max_new_tokens=most)))


@pytest.fixture
def harness(make_harness: MakeHarness) -> SessionHarness:
    return make_harness(engine=ScriptedEngine(answer=lambda ledger: (*LONG.encode(), END)))


def test_a_text_that_is_not_known_is_gone_on_with(harness: SessionHarness) -> None:
    run = begin(harness, user("Hello"), assistant(LONG[:9]))
    message = finish(run)
    assert message.text == LONG
    assert harness.manager.completions.message(run, message.text).text == LONG[9:]
    again = begin(harness, user("Hello"), assistant(LONG), user("And?"))
    receipt = harness.receipt(finish(again))
    assert again.conversation_id == run.conversation_id
    assert (receipt.fed_tokens, receipt.miss_reason) == (receipt.delta_tokens, None)


@pytest.mark.parametrize("most", [5, 400])
def test_an_answer_that_was_cut_goes_on_with_its_own_ids(harness: SessionHarness, most: int) -> None:
    first = begin(harness, user("Hello"), most=most)
    cut = finish(first).text
    assert cut == LONG[:most]
    run = begin(harness, user("Hello"), assistant(cut))
    message = finish(run)
    assert (run.conversation_id, message.text) == (first.conversation_id, LONG)
    assert harness.receipt(message).fed_tokens == 1
    assert message.sibling_count == 2
    assert harness.manager.completions.message(run, message.text).text == LONG[most:]


def test_an_answer_that_had_ended_goes_on_without_its_end(harness: SessionHarness) -> None:
    first = begin(harness, user("Hello"))
    finish(first)
    run = begin(harness, user("Hello"), assistant(LONG))
    finish(run)
    assert run.plan.turn.ledger == (*first.plan.turn.ledger, *LONG.encode())


def test_shown_text_is_only_what_is_new(harness: SessionHarness) -> None:
    run = begin(harness, user("Hello"), assistant(LONG[:9]))
    finish(run)
    for end in range(9, 40):
        assert harness.manager.completions.shown(run, LONG[:end]) == ("", LONG[9:end])


@pytest.mark.parametrize("opens", [False, True])
@pytest.mark.parametrize(
    ("beginning", "start"),
    [
        (assistant("", thoughts="hm, wh"), "hm, wh"),
        (assistant("Hel", thoughts="hm, what?"), "hm, what?\n</think>\n\nHel"),
    ],
)
def test_thoughts_are_gone_on_with(make_harness: MakeHarness, opens: bool, beginning: ChatMessage, start: str) -> None:
    whole = "hm, what?\n</think>\n\nHello" if opens else "<think>\nhm, what?\n</think>\n\nHello"
    template = ByteTemplate(has_thoughts=True, opens_thoughts=opens)
    harness = make_harness(engine=ScriptedEngine(answer=lambda _: (*whole.encode(), END)), template=template)
    run = begin(harness, user("Hi"), beginning)
    message = finish(run)
    assert run.plan.text == (start if opens else f"<think>\n{start}")
    assert message.text == whole
    new = harness.manager.completions.message(run, message.text)
    assert (beginning.thoughts + new.thoughts, beginning.text + new.text) == ("hm, what?", "Hello")
    again = begin(harness, user("Hi"), assistant("Hello"), user("And?"))
    receipt = harness.receipt(finish(again))
    assert (again.conversation_id, receipt.fed_tokens) == (run.conversation_id, receipt.delta_tokens)


def test_nothing_to_go_on_with_is_a_new_answer(harness: SessionHarness) -> None:
    assert finish(begin(harness, user("Hello"), assistant(""))).text == LONG


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([assistant("a")], "no question"),
        ([user("a"), assistant("b"), assistant("c")], "last two messages are the assistant's"),
        ([user("a"), ChatMessage("assistant", "", (ToolCall("1", "f", "{}"),))], "calls tools. Add their results"),
    ],
)
def test_what_is_nothing_to_go_on_with_is_refused(harness: SessionHarness, messages: Said, sentence: str) -> None:
    with pytest.raises(MessageRefused, match=sentence):
        begin(harness, *messages)
