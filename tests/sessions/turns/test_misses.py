"""When more than the delta was read, the receipt says why; and the answer is right all the same."""

from __future__ import annotations

import pytest

from model_runtime.interface.sampling_params import SamplingParams
from sessions.types import ConversationSettings, MessageStatus, MessageView, MissReason, Receipt, Tier
from tests.sessions.byte_template import END, ByteTemplate, ForgetfulTemplate, said
from tests.sessions.conftest import MakeHarness
from tests.sessions.scripted_engine import ScriptedEngine
from tests.sessions.session_harness import ADA, SessionHarness, finish, until


def missed(answer: MessageView, reason: MissReason) -> Receipt:
    assert answer.receipt is not None
    assert answer.receipt.miss_reason is reason
    assert answer.receipt.fed_tokens > answer.receipt.delta_tokens
    again = answer.receipt.fed_tokens - answer.receipt.delta_tokens
    assert f"so {again:,} token" in answer.receipt.miss_detail
    return answer.receipt


def prompt(harness: SessionHarness, c: str, system_prompt: str) -> None:
    harness.manager.update_settings(ADA, c, ConversationSettings(SamplingParams(temperature=0), system_prompt))


def test_dropped_by_hand(harness: SessionHarness) -> None:
    c = harness.conversation()
    harness.say(c, "x" * 1200)
    harness.manager.drop_kv(ADA, c)
    assert harness.engine.allocated_bytes == 0
    assert harness.manager.view(ADA, c).summary.tier is Tier.NONE
    assert "Forgot what" in harness.manager.memory_view(ADA).events[0].text
    answer = harness.say(c, "Still there?")
    assert "dropped by hand" in missed(answer, MissReason.EVICTED).miss_detail
    assert answer.text == harness.expected_text(c)
    assert harness.say(c, "Warm again").receipt.miss_reason is None  # type: ignore[union-attr]


def test_dropped_to_make_room(make_harness: MakeHarness) -> None:
    harness = make_harness(budget_bytes=400 * 1024)  # 400 tokens
    c = harness.conversation(max_new_tokens=100)
    harness.say(c, "x" * 200)
    other = harness.conversation(max_new_tokens=100)
    harness.say(other, "y" * 200)
    (event, *_) = harness.manager.memory_view(ADA).events
    assert event.conversation_id == c
    assert event.text.startswith("Forgot what xxxx")
    assert "to make room: 0.3 MiB" in event.text
    answer = harness.say(c, "Still there?")
    assert "dropped to make room" in missed(answer, MissReason.EVICTED).miss_detail
    assert answer.text == harness.expected_text(c)


def test_restarted(make_harness: MakeHarness) -> None:
    """A conversation of before reasons were kept: nothing else is known of it."""
    first = make_harness()
    c = first.conversation()
    first.say(c, "Hello")
    first.forget_loss(c)
    first.close()
    second = make_harness()
    answer = second.say(c, "Hello again")
    assert "restarted" in missed(answer, MissReason.RESTARTED).miss_detail
    assert answer.text == second.expected_text(c)


def test_another_model_with_the_same_tokenizer(make_harness: MakeHarness) -> None:
    first = make_harness()
    c = first.conversation()
    first.say(c, "Hello")
    ledger = first.ledger(c)
    first.close()
    second = make_harness(engine=ScriptedEngine(name="Scripted-2B"))
    missed(second.say(c, "Hello again"), MissReason.MODEL_CHANGED)
    assert second.ledger(c)[: len(ledger)] == ledger


@pytest.mark.parametrize("act", ["send", "regenerate", "continue", "edit"])
def test_another_tokenizer(make_harness: MakeHarness, act: str) -> None:
    """The ids of every earlier message mean something else now, so the texts are rendered anew."""
    first = make_harness()
    c = first.conversation(max_new_tokens=4)
    first.say(c, "Hello")
    first.say(c, "How are you?")
    first.close()
    second = make_harness(engine=ScriptedEngine(tokenizer_fingerprint="shifted"), template=ByteTemplate(shift=1000))
    manager = second.manager
    texts = second.texts(c)
    if act == "send":
        answer = finish(manager.send(ADA, c, "Go on"))
        turns = [*zip(["user", "assistant"] * 2, texts, strict=True), ("user", "Go on")]
    elif act == "regenerate":
        answer = finish(manager.regenerate(ADA, c))
        turns = [*zip(["user", "assistant", "user"], texts[:3], strict=True)]
    elif act == "edit":
        answer = finish(manager.edit(ADA, c, manager.view(ADA, c).messages[2].message_id, "Or not?"))
        turns = [*zip(["user", "assistant"], texts[:2], strict=True), ("user", "Or not?")]
    else:
        answer = finish(manager.continue_answer(ADA, c))
        turns = [*zip(["user", "assistant", "user"], texts[:3], strict=True)]
    missed(answer, MissReason.MODEL_CHANGED)
    whole = second.template.whole("", said(*turns))
    held = whole + (second.template.answer(texts[3]) if act == "continue" else ())
    assert second.engine.counts[-1][0] == held
    assert second.ledger(c)[: len(held)] == held
    again = second.say(c, "And on")
    assert again.receipt is not None
    assert again.receipt.miss_reason is None
    assert again.receipt.fed_tokens == again.receipt.delta_tokens


def test_a_changed_system_prompt_renders_the_first_turn_again(harness: SessionHarness) -> None:
    c = harness.conversation(system_prompt="Be kind.")
    harness.say(c, "One")
    harness.say(c, "Two")
    old = harness.ledger(c)
    prompt(harness, c, "Be brief.")
    answer = harness.say(c, "Three")
    missed(answer, MissReason.SYSTEM_PROMPT_CHANGED)
    first_old, first_new = (harness.template.first_turn(p, "One") for p in ("Be kind.", "Be brief."))
    sampled = len(harness.path(c)[-1].answer_ids)
    expected = first_new + old[len(first_old) :] + harness.template.next_turn(True, "Three")
    assert harness.ledger(c)[:-sampled] == expected
    assert answer.text == harness.expected_text(c)
    assert harness.path(c)[2].ids.ledger_start > 0  # the nodes above kept theirs
    assert harness.say(c, "Four").receipt.miss_reason is None  # type: ignore[union-attr]
    prompt(harness, c, "Be kind.")
    missed(harness.say(c, "Five"), MissReason.SYSTEM_PROMPT_CHANGED)
    assert harness.ledger(c)[: len(first_old)] == first_old


def test_regenerating_under_a_changed_system_prompt(harness: SessionHarness) -> None:
    """The user's message keeps its ids for the old answer; the new answer carries the history it was given."""
    c = harness.conversation(system_prompt="Be kind.")
    harness.say(c, "One")
    harness.say(c, "Two")
    prompt(harness, c, "Be brief.")
    answer = finish(harness.manager.regenerate(ADA, c))
    missed(answer, MissReason.SYSTEM_PROMPT_CHANGED)
    assert answer.text == harness.expected_text(c)
    assert harness.path(c)[-1].ids.preamble_tokens > 0
    assert harness.ledger(c)[: len(harness.template.first_turn("Be brief.", "One"))] == harness.template.first_turn(
        "Be brief.", "One"
    )
    assert harness.say(c, "Three").receipt.miss_reason is None  # type: ignore[union-attr]
    harness.manager.switch_sibling(ADA, c, answer.message_id, -1)
    assert harness.ledger(c)[: len(harness.template.first_turn("Be kind.", "One"))] == harness.template.first_turn(
        "Be kind.", "One"
    )


def test_editing_the_first_message_uses_the_new_system_prompt(harness: SessionHarness) -> None:
    c = harness.conversation(system_prompt="Be kind.")
    harness.say(c, "One")
    prompt(harness, c, "")
    finish(harness.manager.edit(ADA, c, harness.manager.view(ADA, c).messages[0].message_id, "Other"))
    assert harness.engine.counts[-1][0] == harness.template.first_turn("", "Other")


def test_a_template_that_takes_reasoning_out(make_harness: MakeHarness) -> None:
    harness = make_harness(template=ForgetfulTemplate())
    harness.engine.answer = lambda ledger: (*b"<think>hm, hm</think>Yes.", END)
    c = harness.conversation()
    harness.say(c, "First?")
    answer = harness.say(c, "Second?")
    receipt = missed(answer, MissReason.TEMPLATE_REWROTE_HISTORY)
    start = len(harness.template.first_turn("", "First?"))
    assert f"from token {start + 1:,} on" in receipt.miss_detail
    assert receipt.parting is not None
    assert (receipt.parting.token, receipt.parting.number, receipt.parting.role) == (start, 2, "assistant")
    assert (receipt.parting.before, receipt.parting.after.split("Second")[0]) == ("<think>hm, hm</think>Yes.", "Yes.")
    turns = [("user", "First?"), ("assistant", "Yes."), ("user", "Second?")]
    assert harness.engine.counts[-1][0] == harness.template.whole("", said(*turns))
    assert harness.path(c)[2].ids.ledger_start == start


def test_a_template_that_could_rewrite_but_had_nothing_to(make_harness: MakeHarness) -> None:
    harness = make_harness(template=ForgetfulTemplate())
    c = harness.conversation()
    harness.say(c, "First?")
    answer = harness.say(c, "Second?")
    assert answer.receipt is not None
    assert answer.receipt.miss_reason is None
    assert answer.receipt.fed_tokens == answer.receipt.delta_tokens
    assert answer.text == harness.expected_text(c)


def test_an_answer_that_failed(harness: SessionHarness) -> None:
    c = harness.conversation()
    harness.say(c, "Hello")
    harness.engine.fail = lambda generation: "The device ran out of memory." if generation.sampled else None
    answer = harness.say(c, "x" * 300)
    assert (answer.status, answer.note) == (MessageStatus.FAILED, "The device ran out of memory.")
    harness.engine.fail = lambda generation: None
    again = finish(harness.manager.regenerate(ADA, c))
    assert "ended before everything was in memory" in missed(again, MissReason.EARLIER_FAILURE).miss_detail
    assert again.text == harness.expected_text(c)


def test_an_answer_stopped_while_it_was_read(make_harness: MakeHarness) -> None:
    harness = make_harness(engine=ScriptedEngine(fed_token_delay_s=0.0005))
    c = harness.conversation()
    harness.say(c, "Hello")
    run = harness.manager.send(ADA, c, "x" * 1000)
    until(lambda: run.snapshot().fed_tokens > 0)
    harness.manager.stop(ADA, c)
    finish(run)
    answer = harness.say(c, "Never mind")
    missed(answer, MissReason.EARLIER_FAILURE)
    assert answer.text == harness.expected_text(c)


def test_an_engine_that_is_gone(harness: SessionHarness) -> None:
    c = harness.conversation()
    harness.say(c, "Hello")
    harness.engine.close()
    answer = harness.say(c, "Anybody?")
    assert (answer.status, answer.note) == (MessageStatus.FAILED, "The model's engine has been closed.")
    assert harness.texts(c)[2] == "Anybody?"
