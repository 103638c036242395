"""Drafts are read while no run waits. Sending a message then costs its last words, or one token if the draft had been
quiet. No run is delayed, and nothing of a draft is stored."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from model_runtime.interface.events import FinishReason
from sessions.background.idle_worker import JobKind
from sessions.errors import MessageRefused
from sessions.types import MissReason, Tier
from tests.polling import pause
from tests.sessions.byte_template import ForgetfulTemplate
from tests.sessions.conftest import MakeHouse
from tests.sessions.house import ADA, House, finish, until
from tests.sessions.scripted_engine import ScriptedEngine, ScriptedKV, text_of

TEXT = "The harbour wakes before the town does, and the boats are out before the light."


@pytest.fixture
def ahead_house(make_house: MakeHouse) -> House:
    return make_house(read_ahead=True)


def wait_until_idle(house: House) -> None:
    until(lambda: house.manager.is_idle)


def kv_of(house: House, conversation_id: str) -> ScriptedKV:
    kv = house.manager.memory.held.slots[conversation_id].kv
    assert isinstance(kv, ScriptedKV)
    return kv


def read(house: House, conversation_id: str, draft: str) -> None:
    house.manager.read_ahead(ADA, conversation_id, draft)
    wait_until_idle(house)


def test_typing_leaves_the_last_word_to_be_read(ahead_house: House) -> None:
    house, c = ahead_house, ahead_house.conversation()
    for length in range(4, len(TEXT) + 1, 3):
        read(house, c, TEXT[:length])
    read_tokens = sum(fed for _, _, fed, _ in house.engine.idle_counts)
    receipt = house.receipt(house.say(c, TEXT))
    # " light." with the end of the message and the generation prompt
    assert receipt.fed_tokens == 7 + 2
    assert receipt.ahead_tokens == receipt.reused_tokens == receipt.delta_tokens - 9
    assert (receipt.miss_reason, receipt.saved_s, receipt.tier_before) == (None, 0.0, Tier.NONE)
    assert house.texts(c)[-1] == house.expected_text(c)
    assert read_tokens == receipt.ahead_tokens  # nothing was read twice


def test_a_second_message_is_read_behind_the_first_answer(ahead_house: House) -> None:
    house, c = ahead_house, ahead_house.conversation()
    house.say(c, "Hello there")
    wait_until_idle(house)
    held = len(house.ledger(c)) + 1  # with the pending id and the mark of the next message
    assert kv_of(house, c).length_tokens == held
    read(house, c, TEXT)
    receipt = house.receipt(house.say(c, TEXT))
    assert (receipt.fed_tokens, receipt.delta_tokens) == (9, len(TEXT) + 4)
    assert receipt.ahead_tokens == receipt.delta_tokens - receipt.fed_tokens
    assert house.texts(c)[-1] == house.expected_text(c)
    assert receipt.saved_s > 0
    assert house.manager.memory_view(ADA).reused_tokens_total == receipt.reused_tokens - receipt.ahead_tokens


def test_a_changed_draft_is_cropped(ahead_house: House) -> None:
    house, c = ahead_house, ahead_house.conversation()
    house.say(c, "Hello there")
    read(house, c, TEXT)
    read(house, c, "The harbour sleeps and nothing")
    assert text_of(kv_of(house, c).tokens).endswith("The harbour sleeps and")
    read(house, c, "")
    assert kv_of(house, c).length_tokens == len(house.ledger(c)) + 1
    read(house, c, "Something")
    message = house.say(c, "Nothing like it at all")
    assert message.text == house.expected_text(c)
    assert house.receipt(message).miss_reason is None


def test_a_send_in_the_same_conversation_ends_the_reading_and_keeps_what_was_read(make_house: MakeHouse) -> None:
    house = make_house(read_ahead=True, engine=ScriptedEngine(fed_token_delay_s=0.001))
    c = house.conversation()
    long = "word " * 400
    house.manager.read_ahead(ADA, c, long)
    until(lambda: house.manager.memory.held.holdings().get(c) and kv_of(house, c).length_tokens >= 128)
    began = time.monotonic()
    run = house.manager.send(ADA, c, long)
    until(lambda: run.lease is not None)
    assert time.monotonic() - began < 0.5  # the rest of the reading alone would take two seconds
    receipt = house.receipt(finish(run))
    assert receipt.ahead_tokens >= 128
    assert receipt.fed_tokens + receipt.ahead_tokens == receipt.delta_tokens
    assert house.engine.idle_counts[0][0] in (FinishReason.ABORTED, FinishReason.PREEMPTED)


def test_a_draft_that_was_sent_is_not_read_again(make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the engine ends the reading only after the message was stored: it would be read behind its own answer."""
    house = make_house(read_ahead=True, engine=ScriptedEngine(fed_token_delay_s=0.001))
    c, long, is_sent = house.conversation(), "word " * 400, threading.Event()
    perform = house.manager.background.idle_worker._perform  # noqa: SLF001 - wrapped, so that a job ends late

    def ends_late(*arguments: Any) -> Any:
        outcome = perform(*arguments)
        assert is_sent.wait(10)
        return outcome

    monkeypatch.setattr(house.manager.background.idle_worker, "_perform", ends_late)
    house.manager.read_ahead(ADA, c, long)
    until(lambda: house.manager.memory.held.holdings().get(c) and kv_of(house, c).length_tokens >= 128)
    run = house.manager.send(ADA, c, long)
    is_sent.set()
    finish(run)
    wait_until_idle(house)
    longest = max(len(ledger) for _, ledger, _, _ in house.engine.idle_counts)
    assert longest == len(house.ledger(c)) + 1  # with the mark of the next message


@pytest.mark.alone
def test_an_answer_in_another_conversation_is_not_delayed(make_house: MakeHouse) -> None:
    house = make_house(read_ahead=True, engine=ScriptedEngine(fed_token_delay_s=0.001))
    reader, other = house.conversation(), house.conversation("eve")
    house.manager.read_ahead(ADA, reader, "word " * 400)
    until(lambda: house.manager.memory.held.holdings().get(reader) and kv_of(house, reader).length_tokens >= 64)
    receipt = house.receipt(house.say(other, "Hi", owner="eve"))
    assert receipt.ttft_s is not None
    assert receipt.ttft_s < 0.2
    wait_until_idle(house)  # afterwards the reading resumed where it was
    assert house.engine.idle_counts[-1][0] is FinishReason.READ
    assert (
        sum(fed for _, ledger, fed, _ in house.engine.idle_counts if len(ledger) > 100)
        == kv_of(house, reader).length_tokens
    )


def test_no_draft_is_read_during_an_answer(make_house: MakeHouse) -> None:
    house = make_house(read_ahead=True)
    gate = threading.Event()
    house.engine.on_step = lambda: gate.wait(10) and None
    c, other = house.conversation(), house.conversation("eve")
    run = house.manager.send("eve", other, "Hi")
    house.manager.read_ahead(ADA, c, TEXT)
    pause(0.1)
    assert c not in house.manager.memory.held.holdings()
    gate.set()
    finish(run)
    wait_until_idle(house)
    assert kv_of(house, c).length_tokens > 60


def test_a_draft_typed_during_the_answer_is_read_after_it(make_house: MakeHouse) -> None:
    house = make_house(read_ahead=True, engine=ScriptedEngine(token_delay_s=0.005))
    c = house.conversation()
    run = house.manager.send(ADA, c, "Hello")
    house.manager.read_ahead(ADA, c, TEXT)
    finish(run)
    wait_until_idle(house)
    assert house.receipt(house.say(c, TEXT)).fed_tokens == 9


def test_a_draft_never_reaches_the_disk_or_the_messages(make_house: MakeHouse) -> None:
    house = make_house(read_ahead=True, disk_kv_budget_bytes=2**26)
    c = house.conversation()
    house.say(c, "Hello there")
    read(house, c, TEXT)
    house.manager.park(ADA, c)
    tokens = [house.store.segments.token_ids(segment.key) for segment in house.store.segments.every()]
    assert tokens
    assert all("harbour" not in text_of(ids) for ids in tokens)
    assert len(house.texts(c)) == 2
    assert house.receipt(house.say(c, "And now?")).tier_before is Tier.DISK


def test_a_saved_kv_is_restored_before_a_draft_is_read(make_house: MakeHouse) -> None:
    house = make_house(read_ahead=True, disk_kv_budget_bytes=2**26)
    c = house.conversation()
    house.say(c, TEXT * 5)
    house.manager.park(ADA, c)
    house.engine.idle_counts.clear()
    read(house, c, "And then the sun came up")
    assert sum(fed for _, _, fed, _ in house.engine.idle_counts) < 40
    receipt = house.receipt(house.say(c, "And then the sun came up"))
    assert receipt.fed_tokens <= 6
    assert house.texts(c)[-1] == house.expected_text(c)


def test_an_evicted_conversation_is_read_again_while_its_owner_types(ahead_house: House) -> None:
    house, c = ahead_house, ahead_house.conversation()
    house.say(c, TEXT * 5)
    wait_until_idle(house)
    house.manager.drop_kv(ADA, c)
    read(house, c, "And then the sun came up")
    receipt = house.receipt(house.say(c, "And then the sun came up"))
    assert receipt.fed_tokens == len(" up") + 2
    assert receipt.ahead_tokens == receipt.reused_tokens  # the receipt says that all of it was read again
    house.manager.drop_kv(ADA, c)
    wait_until_idle(house)  # for the start of the next turn alone the chat is not read again
    assert house.receipt(house.say(c, "Now")).miss_reason is MissReason.EVICTED


def test_a_template_that_strips_reasoning_is_read_canonically_while_idle(make_house: MakeHouse) -> None:
    def thinking(ledger: tuple[int, ...]) -> tuple[int, ...]:
        return (*b"a long thought about it</think>The answer", 259)

    house = make_house(read_ahead=True, template=ForgetfulTemplate(), engine=ScriptedEngine(answer=thinking))
    c = house.conversation()
    house.say(c, "Question")
    wait_until_idle(house)
    assert "thought" not in text_of(kv_of(house, c).tokens)
    receipt = house.receipt(house.say(c, "Next question"))
    assert receipt.fed_tokens <= len("Next question") + 2
    assert receipt.miss_reason is None
    assert receipt.ahead_tokens >= len("The answer")


def test_the_budget_holds_and_no_kv_is_evicted_for_a_draft(make_house: MakeHouse) -> None:
    house = make_house(read_ahead=True, budget_bytes=300 * 1024)
    first, second = house.conversation(max_new_tokens=32), house.conversation(max_new_tokens=32)
    house.say(first, "x" * 150)
    wait_until_idle(house)
    second = house.conversation(max_new_tokens=32)
    house.manager.read_ahead(ADA, second, "word " * 50)
    pause(0.2)
    assert first in house.manager.memory.held.holdings()
    assert second not in house.manager.memory.held.holdings()
    house.manager.read_ahead(ADA, second, "a few words")
    until(lambda: second in house.manager.memory.held.holdings())


def test_deleting_while_a_draft_is_read_leaves_nothing_behind(make_house: MakeHouse) -> None:
    house = make_house(read_ahead=True, engine=ScriptedEngine(fed_token_delay_s=0.001))
    c = house.conversation()
    house.manager.read_ahead(ADA, c, "word " * 400)
    until(lambda: c in house.manager.memory.held.holdings())
    began = time.monotonic()
    house.manager.delete(ADA, c)
    assert time.monotonic() - began < 1.0
    house.manager.read_ahead(ADA, house.conversation(), "")
    wait_until_idle(house)
    assert c not in house.manager.memory.held.holdings()


def test_a_huge_draft_is_refused_and_one_that_does_not_fit_is_left_alone(make_house: MakeHouse) -> None:
    house = make_house(read_ahead=True, max_message_bytes=100_000)
    c = house.conversation()
    with pytest.raises(MessageRefused):
        house.manager.read_ahead(ADA, c, "x" * 200_000)
    read(house, c, "word " * 3000)
    assert house.manager.memory.held.holdings() == {}


def test_nothing_is_read_when_it_is_switched_off(make_house: MakeHouse) -> None:
    house = make_house(read_ahead=False)
    c = house.conversation()
    house.say(c, "Hello")
    read(house, c, TEXT)
    assert house.engine.idle_counts == []


def test_closing_does_not_wait_for_a_reading(make_house: MakeHouse) -> None:
    house = make_house(read_ahead=True, engine=ScriptedEngine(fed_token_delay_s=0.002))
    c = house.conversation()
    house.manager.read_ahead(ADA, c, "word " * 1000)
    until(lambda: c in house.manager.memory.held.holdings())
    began = time.monotonic()
    house.close()
    assert time.monotonic() - began < 2


# A draft that has been quiet is read to its end. With the settings `WHOLE` every draft counts as quiet at once.

WHOLE = {"read_ahead": True, "draft_quiet_s": 0.0}


def test_a_quiet_draft_is_read_whole_and_sending_it_feeds_one_token(make_house: MakeHouse) -> None:
    house = make_house(**WHOLE)
    c = house.conversation()
    for number in (1, 2):  # the first turn, and one after an answer
        read(house, c, TEXT)
        assert len(house.texts(c)) == 2 * number - 2  # it is not a message
        receipt = house.receipt(house.say(c, TEXT))
        assert (receipt.fed_tokens, receipt.miss_reason) == (1, None)
        assert receipt.ahead_tokens == receipt.delta_tokens - 1
        assert house.texts(c)[-1] == house.expected_text(c)
        wait_until_idle(house)
    assert house.manager.memory_view(ADA).reused_tokens_total == receipt.reused_tokens - receipt.ahead_tokens


def test_typing_on_after_a_whole_reading_crops_it_to_what_is_stable(make_house: MakeHouse) -> None:
    house = make_house(**WHOLE)
    c, plain = house.conversation(), make_house(data_dir=house.store.kv_dir.parent / "plain")
    house.say(c, "Hello there")
    for draft in (TEXT, f"{TEXT[:-1]}, as", TEXT[:30]):
        read(house, c, draft)
        assert text_of(kv_of(house, c).tokens).endswith(draft)  # and then the end of the message
    stable = [ledger for _, ledger, _, _ in house.engine.idle_counts if text_of(ledger).endswith("before the")]
    assert stable  # between the two readings to the end
    answer = house.say(c, "The harbour wakes at noon")
    cold = plain.conversation()
    plain.say(cold, "Hello there")
    assert answer.text == plain.say(cold, "The harbour wakes at noon").text == house.expected_text(c)
    assert house.receipt(answer).fed_tokens == len("at noon") + 2


def test_a_draft_is_read_whole_only_once_it_is_quiet(make_house: MakeHouse) -> None:
    house = make_house(read_ahead=True, draft_quiet_s=0.3)
    c = house.conversation()
    for length in (*range(40, len(TEXT), 8), len(TEXT)):
        read(house, c, TEXT[:length])
    whole = [ledger for _, ledger, _, _ in house.engine.idle_counts if 259 in ledger]  # with the message's end
    assert whole == []
    until(lambda: house.engine.idle_counts[-1][1][-1] == 259)
    assert house.receipt(house.say(c, TEXT)).fed_tokens == 1


def test_a_long_read_waits_until_the_draft_was_quiet_for_as_long(make_house: MakeHouse) -> None:
    house = make_house(**WHOLE, engine=ScriptedEngine(fed_token_delay_s=0.03))
    c = house.conversation()
    began = time.monotonic()
    house.manager.read_ahead(ADA, c, "a word")
    until(lambda: house.engine.idle_counts and house.engine.idle_counts[-1][1][-1] == 259)
    reads = [fed for _, _, fed, _ in house.engine.idle_counts]
    assert reads == [2, 6]  # the mark and "a"; then " word" and the message's end, 0.18 s of reading
    assert time.monotonic() - began > 2 * 0.18


@pytest.mark.alone
def test_a_message_ends_a_whole_reading_at_once(make_house: MakeHouse) -> None:
    house = make_house(**WHOLE, engine=ScriptedEngine(fed_token_delay_s=0.02))
    c, other = house.conversation(), house.conversation("eve")
    house.say(other, "Hello there", owner="eve")
    house.manager.read_ahead(ADA, c, "a " + "w" * 80)  # 82 tokens at its end: more than a second and a half
    until(lambda: _current_kind(house) is JobKind.WHOLE, timeout_s=20)
    until(lambda: len(house.engine.running) == 1)
    receipt = house.receipt(house.say(other, "Hi", owner="eve"))
    assert receipt.ttft_s is not None
    assert receipt.ttft_s < 0.4  # five tokens of its own
    until(lambda: FinishReason.PREEMPTED in _reasons(house) or FinishReason.ABORTED in _reasons(house))
    wait_until_idle(house)  # the reading resumed
    assert kv_of(house, c).length_tokens == 84
    assert _reasons(house)[-1] is FinishReason.READ


def test_the_next_key_ends_a_whole_reading_at_once(make_house: MakeHouse) -> None:
    house = make_house(**WHOLE, engine=ScriptedEngine(fed_token_delay_s=0.02))
    c = house.conversation()
    house.manager.read_ahead(ADA, c, "a " + "w" * 80)
    until(lambda: _current_kind(house) is JobKind.WHOLE and house.engine.running, timeout_s=20)
    began = time.monotonic()
    house.manager.read_ahead(ADA, c, "a " + "w" * 80 + " x")
    until(lambda: text_of(kv_of(house, c).tokens).endswith("ww"))
    assert FinishReason.ABORTED in _reasons(house)
    assert time.monotonic() - began < 81 * 0.02 + 0.4


def test_a_whole_reading_is_cropped_when_something_else_is_done(make_house: MakeHouse) -> None:
    house = make_house(**WHOLE, disk_kv_budget_bytes=2**26)
    c = house.conversation()
    house.say(c, "Hello there")
    read(house, c, TEXT)
    again = finish(house.manager.regenerate(ADA, c))
    assert again.text == house.expected_text(c)
    read(house, c, TEXT)
    house.manager.park(ADA, c)
    tokens = [house.store.segments.token_ids(segment.key) for segment in house.store.segments.every()]
    assert tokens
    assert all("harbour" not in text_of(ids) for ids in tokens)
    read(house, c, "")
    assert kv_of(house, c).length_tokens == len(house.ledger(c)) + 1  # the mark of the next message
    message = house.say(c, "Something else")
    assert message.text == house.expected_text(c)


def _current_kind(house: House) -> JobKind | None:
    current = house.manager.background.idle_worker._current  # noqa: SLF001 - which kind of job runs now
    return current[0].kind if current is not None else None


def _reasons(house: House) -> list[FinishReason]:
    return [reason for reason, _, _, _ in house.engine.idle_counts]
