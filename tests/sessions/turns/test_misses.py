"""When more than the delta was read, the receipt says why; and the answer is right all the same."""

from __future__ import annotations

import pytest

from model_runtime.interface.sampling_params import SamplingParams
from sessions.types import ConversationSettings, MessageStatus, MessageView, MissReason, Receipt, Tier
from tests.sessions.byte_template import END, ByteTemplate, ForgetfulTemplate
from tests.sessions.conftest import MakeHouse
from tests.sessions.house import ADA, House, finish, until
from tests.sessions.scripted_engine import ScriptedEngine


def missed(answer: MessageView, reason: MissReason) -> Receipt:
    assert answer.receipt is not None
    assert answer.receipt.miss_reason is reason
    assert answer.receipt.fed_tokens > answer.receipt.delta_tokens
    again = answer.receipt.fed_tokens - answer.receipt.delta_tokens
    assert f"so {again:,} token" in answer.receipt.miss_detail
    return answer.receipt


def prompt(house: House, c: str, system_prompt: str) -> None:
    house.manager.update_settings(ADA, c, ConversationSettings(SamplingParams(temperature=0), system_prompt))


def test_dropped_by_hand(house: House) -> None:
    c = house.conversation()
    house.say(c, "x" * 1200)
    house.manager.drop_kv(ADA, c)
    assert house.engine.allocated_bytes == 0
    assert house.manager.view(ADA, c).summary.tier is Tier.NONE
    assert "Dropped the KV of" in house.manager.memory_view(ADA).events[0].text
    answer = house.say(c, "Still there?")
    assert "dropped by hand" in missed(answer, MissReason.EVICTED).miss_detail
    assert answer.text == house.expected_text(c)
    assert house.say(c, "Warm again").receipt.miss_reason is None  # type: ignore[union-attr]


def test_dropped_to_make_room(make_house: MakeHouse) -> None:
    house = make_house(budget_bytes=400 * 1024)  # 400 tokens
    c = house.conversation(max_new_tokens=100)
    house.say(c, "x" * 200)
    other = house.conversation(max_new_tokens=100)
    house.say(other, "y" * 200)
    (event, *_) = house.manager.memory_view(ADA).events
    assert event.conversation_id == c
    assert event.text.startswith("Dropped the KV of xxxx")
    assert "to make room: 0.3 MiB" in event.text
    answer = house.say(c, "Still there?")
    assert "dropped to make room" in missed(answer, MissReason.EVICTED).miss_detail
    assert answer.text == house.expected_text(c)


def test_restarted(make_house: MakeHouse) -> None:
    """A conversation of before reasons were kept: nothing else is known of it."""
    first = make_house()
    c = first.conversation()
    first.say(c, "Hello")
    first.forget_loss(c)
    first.close()
    second = make_house()
    answer = second.say(c, "Hello again")
    assert "restarted" in missed(answer, MissReason.RESTARTED).miss_detail
    assert answer.text == second.expected_text(c)


def test_another_model_with_the_same_tokenizer(make_house: MakeHouse) -> None:
    first = make_house()
    c = first.conversation()
    first.say(c, "Hello")
    ledger = first.ledger(c)
    first.close()
    second = make_house(engine=ScriptedEngine(name="Scripted-2B"))
    missed(second.say(c, "Hello again"), MissReason.MODEL_CHANGED)
    assert second.ledger(c)[: len(ledger)] == ledger


@pytest.mark.parametrize("act", ["send", "regenerate", "continue", "edit"])
def test_another_tokenizer(make_house: MakeHouse, act: str) -> None:
    """The ids of every earlier message mean something else now, so the texts are rendered anew."""
    first = make_house()
    c = first.conversation(max_new_tokens=4)
    first.say(c, "Hello")
    first.say(c, "How are you?")
    first.close()
    second = make_house(engine=ScriptedEngine(tokenizer_fingerprint="shifted"), template=ByteTemplate(shift=1000))
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
    whole = second.template.whole("", turns)
    held = whole + (second.template.answer(texts[3]) if act == "continue" else ())
    assert second.engine.counts[-1][0] == held
    assert second.ledger(c)[: len(held)] == held
    again = second.say(c, "And on")
    assert again.receipt is not None
    assert again.receipt.miss_reason is None
    assert again.receipt.fed_tokens == again.receipt.delta_tokens


def test_a_changed_system_prompt_renders_the_first_turn_anew(house: House) -> None:
    c = house.conversation(system_prompt="Be kind.")
    house.say(c, "One")
    house.say(c, "Two")
    old = house.ledger(c)
    prompt(house, c, "Be brief.")
    answer = house.say(c, "Three")
    missed(answer, MissReason.SYSTEM_PROMPT_CHANGED)
    first_old, first_new = (house.template.first_turn(p, "One") for p in ("Be kind.", "Be brief."))
    sampled = len(house.path(c)[-1].answer_ids)
    expected = first_new + old[len(first_old) :] + house.template.next_turn(True, "Three")
    assert house.ledger(c)[:-sampled] == expected
    assert answer.text == house.expected_text(c)
    assert house.path(c)[2].ids.ledger_start > 0  # the nodes above kept theirs
    assert house.say(c, "Four").receipt.miss_reason is None  # type: ignore[union-attr]
    prompt(house, c, "Be kind.")
    missed(house.say(c, "Five"), MissReason.SYSTEM_PROMPT_CHANGED)
    assert house.ledger(c)[: len(first_old)] == first_old


def test_regenerating_under_a_changed_system_prompt(house: House) -> None:
    """The user's message keeps its ids for the old answer; the new answer carries the history it was given."""
    c = house.conversation(system_prompt="Be kind.")
    house.say(c, "One")
    house.say(c, "Two")
    prompt(house, c, "Be brief.")
    answer = finish(house.manager.regenerate(ADA, c))
    missed(answer, MissReason.SYSTEM_PROMPT_CHANGED)
    assert answer.text == house.expected_text(c)
    assert house.path(c)[-1].ids.preamble_tokens > 0
    assert house.ledger(c)[: len(house.template.first_turn("Be brief.", "One"))] == house.template.first_turn(
        "Be brief.", "One"
    )
    assert house.say(c, "Three").receipt.miss_reason is None  # type: ignore[union-attr]
    house.manager.switch_sibling(ADA, c, answer.message_id, -1)
    assert house.ledger(c)[: len(house.template.first_turn("Be kind.", "One"))] == house.template.first_turn(
        "Be kind.", "One"
    )


def test_editing_the_first_message_uses_the_new_system_prompt(house: House) -> None:
    c = house.conversation(system_prompt="Be kind.")
    house.say(c, "One")
    prompt(house, c, "")
    finish(house.manager.edit(ADA, c, house.manager.view(ADA, c).messages[0].message_id, "Other"))
    assert house.engine.counts[-1][0] == house.template.first_turn("", "Other")


def test_a_template_that_takes_reasoning_out(make_house: MakeHouse) -> None:
    house = make_house(template=ForgetfulTemplate())
    house.engine.answer = lambda ledger: (*b"<think>hm, hm</think>Yes.", END)
    c = house.conversation()
    house.say(c, "First?")
    answer = house.say(c, "Second?")
    receipt = missed(answer, MissReason.TEMPLATE_REWROTE_HISTORY)
    start = len(house.template.first_turn("", "First?"))
    assert f"from token {start + 1:,} on" in receipt.miss_detail
    turns = [("user", "First?"), ("assistant", "Yes."), ("user", "Second?")]
    assert house.engine.counts[-1][0] == house.template.whole("", turns)
    assert house.path(c)[2].ids.ledger_start == start


def test_a_template_that_could_rewrite_but_had_nothing_to(make_house: MakeHouse) -> None:
    house = make_house(template=ForgetfulTemplate())
    c = house.conversation()
    house.say(c, "First?")
    answer = house.say(c, "Second?")
    assert answer.receipt is not None
    assert answer.receipt.miss_reason is None
    assert answer.receipt.fed_tokens == answer.receipt.delta_tokens
    assert answer.text == house.expected_text(c)


def test_an_answer_that_failed(house: House) -> None:
    c = house.conversation()
    house.say(c, "Hello")
    house.engine.fail = lambda generation: "The device ran out of memory." if generation.sampled else None
    answer = house.say(c, "x" * 300)
    assert (answer.status, answer.note) == (MessageStatus.FAILED, "The device ran out of memory.")
    house.engine.fail = lambda generation: None
    again = finish(house.manager.regenerate(ADA, c))
    assert "ended before everything was in memory" in missed(again, MissReason.EARLIER_FAILURE).miss_detail
    assert again.text == house.expected_text(c)


def test_an_answer_stopped_while_it_was_read(make_house: MakeHouse) -> None:
    house = make_house(engine=ScriptedEngine(fed_token_delay_s=0.0005))
    c = house.conversation()
    house.say(c, "Hello")
    run = house.manager.send(ADA, c, "x" * 1000)
    until(lambda: run.snapshot().fed_tokens > 0)
    house.manager.stop(ADA, c)
    finish(run)
    answer = house.say(c, "Never mind")
    missed(answer, MissReason.EARLIER_FAILURE)
    assert answer.text == house.expected_text(c)


def test_an_engine_that_is_gone(house: House) -> None:
    c = house.conversation()
    house.say(c, "Hello")
    house.engine.close()
    answer = house.say(c, "Anybody?")
    assert (answer.status, answer.note) == (MessageStatus.FAILED, "The model's engine has been closed.")
    assert house.texts(c)[2] == "Anybody?"
