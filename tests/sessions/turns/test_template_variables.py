"""Values of the chat template's variables belong to the conversation: a turn is rendered with them, and where others
change what was written before, the receipt says so."""

from __future__ import annotations

import json

import pytest

from model_runtime.interface.chat import ChatMessage
from model_runtime.interface.sampling_params import SamplingParams
from sessions.turns.planned_turn import ChatRequest
from sessions.turns.run import Run
from sessions.types import MissReason
from tests.sessions.byte_template import ASSISTANT, ByteTemplate
from tests.sessions.conftest import MakeHarness
from tests.sessions.session_harness import ADA, SessionHarness, finish

GREEDY = SamplingParams(temperature=0, max_new_tokens=64)
OFF, LOW = ({"enable_thinking": False}, {"effort": "low"})
NO_THOUGHT = (ASSISTANT, *b"<think></think>")


@pytest.fixture
def harness(make_harness: MakeHarness) -> SessionHarness:
    return make_harness(template=ByteTemplate(variables=("enable_thinking", "effort")))


def begin(harness: SessionHarness, messages: list[ChatMessage], **variables: object) -> Run:
    values = json.dumps(variables) if variables else ""
    return harness.manager.completions.begin(ADA, ChatRequest(tuple(messages), GREEDY, template_variables=values))


def said(harness: SessionHarness, messages: list[ChatMessage], text: str, **variables: object) -> Run:
    """Asks, and adds the question and its answer to the messages."""
    messages.append(ChatMessage("user", text))
    run = begin(harness, messages, **variables)
    messages.append(ChatMessage("assistant", finish(run).text))
    return run


def test_a_switch_that_changes_only_the_prompt_costs_nothing(harness: SessionHarness) -> None:
    messages: list[ChatMessage] = []
    first = said(harness, messages, "One")
    for variables in (OFF, OFF, {}, OFF):
        run = said(harness, messages, "Next", **variables)
        assert run.conversation_id == first.conversation_id
        receipt = harness.receipt(harness.manager.view(ADA, run.conversation_id).messages[-1])
        assert (receipt.fed_tokens, receipt.miss_reason) == (receipt.delta_tokens, None)
        assert (run.plan.turn.ledger[-len(NO_THOUGHT) :] == NO_THOUGHT) == bool(variables)
        assert harness.expected_text(run.conversation_id) == messages[-1].text


def test_one_that_changes_the_beginning_is_a_miss_with_a_reason(harness: SessionHarness) -> None:
    messages: list[ChatMessage] = []
    said(harness, messages, "One")
    said(harness, messages, "Two")
    for variables in (LOW, {}, {**LOW, **OFF}):
        run = said(harness, messages, "Next", **variables)
        receipt = harness.receipt(harness.manager.view(ADA, run.conversation_id).messages[-1])
        assert receipt.miss_reason is MissReason.TEMPLATE_VARIABLES_CHANGED
        assert "variables change what was written before" in receipt.miss_detail
        values = json.dumps(variables) if variables else ""
        whole = harness.template.with_variables(values).whole("", messages[:-1])
        assert bytes(i % 256 for i in run.plan.turn.ledger[:12]) == bytes(i % 256 for i in whole[:12])
        run = said(harness, messages, "And", **variables)
        receipt = harness.receipt(harness.manager.view(ADA, run.conversation_id).messages[-1])
        assert (receipt.fed_tokens, receipt.miss_reason) == (receipt.delta_tokens, None)


def test_the_same_question_with_another_switch_is_rendered_with_it(harness: SessionHarness) -> None:
    messages = [ChatMessage("user", "One")]
    finish(begin(harness, messages))
    run = begin(harness, messages, **OFF)
    finish(run)
    assert run.plan.turn.ledger[-len(NO_THOUGHT) :] == NO_THOUGHT
    again = begin(harness, messages, **OFF)
    finish(again)
    assert again.plan.turn.ledger == run.plan.turn.ledger
    view = harness.manager.view(ADA, again.conversation_id)
    assert (len(view.messages), view.messages[-1].sibling_count) == (2, 2)


def test_they_hold_on_the_page_and_after_a_restart(make_harness: MakeHarness) -> None:
    template = ByteTemplate(variables=("enable_thinking", "effort"))
    harness = make_harness(template=template)
    messages: list[ChatMessage] = []
    conversation = said(harness, messages, "One", **LOW).conversation_id
    harness.close()
    again = make_harness(template=template)
    settings = again.manager.view(ADA, conversation).settings
    assert json.loads(settings.template_variables) == LOW
    again.manager.update_settings(ADA, conversation, settings)
    answer = again.say(conversation, "From the page")
    assert again.path(conversation)[-2].ids.ledger_start > 0  # nothing was rendered again
    assert again.expected_text(conversation) == answer.text
    messages += [ChatMessage("user", "From the page"), ChatMessage("assistant", answer.text)]
    receipt = again.receipt(finish(begin(again, [*messages, ChatMessage("user", "Next")], **LOW)))
    assert receipt.miss_reason is None


def test_an_imported_history_is_rendered_with_them(harness: SessionHarness) -> None:
    messages = [ChatMessage("user", "One"), ChatMessage("assistant", "First"), ChatMessage("user", "Two")]
    run = begin(harness, messages, **LOW)
    finish(run)
    expected = harness.template.with_variables(json.dumps(LOW))
    assert run.plan.turn.ledger == (*expected.first_turn("", "One"), *b"First", *expected.next_turn(False, "Two"))
