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
from tests.sessions.conftest import MakeHarness
from tests.sessions.scripted_engine import ScriptedEngine, ScriptedKV, text_of
from tests.sessions.session_harness import ADA, SessionHarness, finish, until

TEXT = "The harbour wakes before the town does, and the boats are out before the light."


@pytest.fixture
def ahead_harness(make_harness: MakeHarness) -> SessionHarness:
    return make_harness(read_ahead=True)


def wait_until_idle(harness: SessionHarness) -> None:
    until(lambda: harness.manager.is_idle)


def kv_of(harness: SessionHarness, conversation_id: str) -> ScriptedKV:
    kv = harness.manager.memory.held.slots[conversation_id].kv
    assert isinstance(kv, ScriptedKV)
    return kv


def read(harness: SessionHarness, conversation_id: str, draft: str) -> None:
    harness.manager.read_ahead(ADA, conversation_id, draft)
    wait_until_idle(harness)


def test_typing_leaves_the_last_word_to_be_read(ahead_harness: SessionHarness) -> None:
    harness, c = ahead_harness, ahead_harness.conversation()
    for length in range(4, len(TEXT) + 1, 3):
        read(harness, c, TEXT[:length])
    read_tokens = sum(fed for _, _, fed, _ in harness.engine.idle_counts)
    receipt = harness.receipt(harness.say(c, TEXT))
    # " light." with the end of the message and the generation prompt
    assert receipt.fed_tokens == 7 + 2
    assert receipt.ahead_tokens == receipt.reused_tokens == receipt.delta_tokens - 9
    assert (receipt.miss_reason, receipt.saved_s, receipt.tier_before) == (None, 0.0, Tier.NONE)
    assert harness.texts(c)[-1] == harness.expected_text(c)
    assert read_tokens == receipt.ahead_tokens  # nothing was read twice


def test_a_second_message_is_read_behind_the_first_answer(ahead_harness: SessionHarness) -> None:
    harness, c = ahead_harness, ahead_harness.conversation()
    harness.say(c, "Hello there")
    wait_until_idle(harness)
    held = len(harness.ledger(c)) + 1  # with the pending id and the mark of the next message
    assert kv_of(harness, c).length_tokens == held
    read(harness, c, TEXT)
    receipt = harness.receipt(harness.say(c, TEXT))
    assert (receipt.fed_tokens, receipt.delta_tokens) == (9, len(TEXT) + 4)
    assert receipt.ahead_tokens == receipt.delta_tokens - receipt.fed_tokens
    assert harness.texts(c)[-1] == harness.expected_text(c)
    assert receipt.saved_s > 0
    assert harness.manager.memory_view(ADA).reused_tokens_total == receipt.reused_tokens - receipt.ahead_tokens


def test_a_changed_draft_is_cropped(ahead_harness: SessionHarness) -> None:
    harness, c = ahead_harness, ahead_harness.conversation()
    harness.say(c, "Hello there")
    read(harness, c, TEXT)
    read(harness, c, "The harbour sleeps and nothing")
    assert text_of(kv_of(harness, c).tokens).endswith("The harbour sleeps and")
    read(harness, c, "")
    assert kv_of(harness, c).length_tokens == len(harness.ledger(c)) + 1
    read(harness, c, "Something")
    message = harness.say(c, "Nothing like it at all")
    assert message.text == harness.expected_text(c)
    assert harness.receipt(message).miss_reason is None


def test_a_send_in_the_same_conversation_ends_the_reading_and_keeps_what_was_read(make_harness: MakeHarness) -> None:
    harness = make_harness(read_ahead=True, engine=ScriptedEngine(fed_token_delay_s=0.001))
    c = harness.conversation()
    long = "word " * 400
    harness.manager.read_ahead(ADA, c, long)
    until(lambda: harness.manager.memory.held.holdings().get(c) and kv_of(harness, c).length_tokens >= 128)
    began = time.monotonic()
    run = harness.manager.send(ADA, c, long)
    until(lambda: run.lease is not None)
    assert time.monotonic() - began < 0.5  # the rest of the reading alone would take two seconds
    receipt = harness.receipt(finish(run))
    assert receipt.ahead_tokens >= 128
    assert receipt.fed_tokens + receipt.ahead_tokens == receipt.delta_tokens
    assert harness.engine.idle_counts[0][0] in (FinishReason.ABORTED, FinishReason.PREEMPTED)


def test_a_draft_that_was_sent_is_not_read_again(make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the engine ends the reading only after the message was stored: it would be read behind its own answer."""
    harness = make_harness(read_ahead=True, engine=ScriptedEngine(fed_token_delay_s=0.001))
    c, long, is_sent = harness.conversation(), "word " * 400, threading.Event()
    perform = harness.manager.background.idle_worker._perform  # noqa: SLF001 - wrapped, so that a job ends late

    def ends_late(*arguments: Any) -> Any:
        outcome = perform(*arguments)
        assert is_sent.wait(10)
        return outcome

    monkeypatch.setattr(harness.manager.background.idle_worker, "_perform", ends_late)
    harness.manager.read_ahead(ADA, c, long)
    until(lambda: harness.manager.memory.held.holdings().get(c) and kv_of(harness, c).length_tokens >= 128)
    run = harness.manager.send(ADA, c, long)
    is_sent.set()
    finish(run)
    wait_until_idle(harness)
    longest = max(len(ledger) for _, ledger, _, _ in harness.engine.idle_counts)
    assert longest == len(harness.ledger(c)) + 1  # with the mark of the next message


@pytest.mark.alone
def test_an_answer_in_another_conversation_is_not_delayed(make_harness: MakeHarness) -> None:
    harness = make_harness(read_ahead=True, engine=ScriptedEngine(fed_token_delay_s=0.001))
    reader, other = harness.conversation(), harness.conversation("eve")
    harness.manager.read_ahead(ADA, reader, "word " * 400)
    until(lambda: harness.manager.memory.held.holdings().get(reader) and kv_of(harness, reader).length_tokens >= 64)
    receipt = harness.receipt(harness.say(other, "Hi", owner="eve"))
    assert receipt.ttft_s is not None
    assert receipt.ttft_s < 0.2
    wait_until_idle(harness)  # afterwards the reading resumed where it was
    assert harness.engine.idle_counts[-1][0] is FinishReason.READ
    assert (
        sum(fed for _, ledger, fed, _ in harness.engine.idle_counts if len(ledger) > 100)
        == kv_of(harness, reader).length_tokens
    )


def test_no_draft_is_read_during_an_answer(make_harness: MakeHarness) -> None:
    harness = make_harness(read_ahead=True)
    gate = threading.Event()
    harness.engine.on_step = lambda: gate.wait(10) and None
    c, other = harness.conversation(), harness.conversation("eve")
    run = harness.manager.send("eve", other, "Hi")
    harness.manager.read_ahead(ADA, c, TEXT)
    pause(0.1)
    assert c not in harness.manager.memory.held.holdings()
    gate.set()
    finish(run)
    wait_until_idle(harness)
    assert kv_of(harness, c).length_tokens > 60


def test_a_draft_typed_during_the_answer_is_read_after_it(make_harness: MakeHarness) -> None:
    harness = make_harness(read_ahead=True, engine=ScriptedEngine(token_delay_s=0.005))
    c = harness.conversation()
    run = harness.manager.send(ADA, c, "Hello")
    harness.manager.read_ahead(ADA, c, TEXT)
    finish(run)
    wait_until_idle(harness)
    assert harness.receipt(harness.say(c, TEXT)).fed_tokens == 9


def test_a_draft_never_reaches_the_disk_or_the_messages(make_harness: MakeHarness) -> None:
    harness = make_harness(read_ahead=True, disk_kv_budget_bytes=2**26)
    c = harness.conversation()
    harness.say(c, "Hello there")
    read(harness, c, TEXT)
    harness.manager.park(ADA, c)
    tokens = [harness.store.segments.token_ids(segment.key) for segment in harness.store.segments.every()]
    assert tokens
    assert all("harbour" not in text_of(ids) for ids in tokens)
    assert len(harness.texts(c)) == 2
    assert harness.receipt(harness.say(c, "And now?")).tier_before is Tier.DISK


def test_a_saved_kv_is_restored_before_a_draft_is_read(make_harness: MakeHarness) -> None:
    harness = make_harness(read_ahead=True, disk_kv_budget_bytes=2**26)
    c = harness.conversation()
    harness.say(c, TEXT * 5)
    harness.manager.park(ADA, c)
    harness.engine.idle_counts.clear()
    read(harness, c, "And then the sun came up")
    assert sum(fed for _, _, fed, _ in harness.engine.idle_counts) < 40
    receipt = harness.receipt(harness.say(c, "And then the sun came up"))
    assert receipt.fed_tokens <= 6
    assert harness.texts(c)[-1] == harness.expected_text(c)


def test_an_evicted_conversation_is_read_again_while_its_owner_types(ahead_harness: SessionHarness) -> None:
    harness, c = ahead_harness, ahead_harness.conversation()
    harness.say(c, TEXT * 5)
    wait_until_idle(harness)
    harness.manager.drop_kv(ADA, c)
    read(harness, c, "And then the sun came up")
    receipt = harness.receipt(harness.say(c, "And then the sun came up"))
    assert receipt.fed_tokens == len(" up") + 2
    assert receipt.ahead_tokens == receipt.reused_tokens  # the receipt says that all of it was read again
    harness.manager.drop_kv(ADA, c)
    wait_until_idle(harness)  # for the start of the next turn alone the chat is not read again
    assert harness.receipt(harness.say(c, "Now")).miss_reason is MissReason.EVICTED


def test_a_template_that_strips_reasoning_is_read_canonically_while_idle(make_harness: MakeHarness) -> None:
    def thinking(ledger: tuple[int, ...]) -> tuple[int, ...]:
        return (*b"a long thought about it</think>The answer", 259)

    harness = make_harness(read_ahead=True, template=ForgetfulTemplate(), engine=ScriptedEngine(answer=thinking))
    c = harness.conversation()
    harness.say(c, "Question")
    wait_until_idle(harness)
    assert "thought" not in text_of(kv_of(harness, c).tokens)
    receipt = harness.receipt(harness.say(c, "Next question"))
    assert receipt.fed_tokens <= len("Next question") + 2
    assert receipt.miss_reason is None
    assert receipt.ahead_tokens >= len("The answer")


def test_the_budget_holds_and_no_kv_is_evicted_for_a_draft(make_harness: MakeHarness) -> None:
    harness = make_harness(read_ahead=True, budget_bytes=300 * 1024)
    first, second = harness.conversation(max_new_tokens=32), harness.conversation(max_new_tokens=32)
    harness.say(first, "x" * 150)
    wait_until_idle(harness)
    second = harness.conversation(max_new_tokens=32)
    harness.manager.read_ahead(ADA, second, "word " * 50)
    pause(0.2)
    assert first in harness.manager.memory.held.holdings()
    assert second not in harness.manager.memory.held.holdings()
    harness.manager.read_ahead(ADA, second, "a few words")
    until(lambda: second in harness.manager.memory.held.holdings())


def test_deleting_while_a_draft_is_read_leaves_nothing_behind(make_harness: MakeHarness) -> None:
    harness = make_harness(read_ahead=True, engine=ScriptedEngine(fed_token_delay_s=0.001))
    c = harness.conversation()
    harness.manager.read_ahead(ADA, c, "word " * 400)
    until(lambda: c in harness.manager.memory.held.holdings())
    began = time.monotonic()
    harness.manager.delete(ADA, c)
    assert time.monotonic() - began < 1.0
    harness.manager.read_ahead(ADA, harness.conversation(), "")
    wait_until_idle(harness)
    assert c not in harness.manager.memory.held.holdings()


def test_a_huge_draft_is_refused_and_one_that_does_not_fit_is_left_alone(make_harness: MakeHarness) -> None:
    harness = make_harness(read_ahead=True, max_message_bytes=100_000)
    c = harness.conversation()
    with pytest.raises(MessageRefused):
        harness.manager.read_ahead(ADA, c, "x" * 200_000)
    read(harness, c, "word " * 3000)
    assert harness.manager.memory.held.holdings() == {}


def test_nothing_is_read_when_it_is_switched_off(make_harness: MakeHarness) -> None:
    harness = make_harness(read_ahead=False)
    c = harness.conversation()
    harness.say(c, "Hello")
    read(harness, c, TEXT)
    assert harness.engine.idle_counts == []


def test_closing_does_not_wait_for_a_reading(make_harness: MakeHarness) -> None:
    harness = make_harness(read_ahead=True, engine=ScriptedEngine(fed_token_delay_s=0.002))
    c = harness.conversation()
    harness.manager.read_ahead(ADA, c, "word " * 1000)
    until(lambda: c in harness.manager.memory.held.holdings())
    began = time.monotonic()
    harness.close()
    assert time.monotonic() - began < 2


# A draft that has been quiet is read to its end. With the settings `WHOLE` every draft counts as quiet at once.

WHOLE = {"read_ahead": True, "draft_quiet_s": 0.0}


def test_a_quiet_draft_is_read_whole_and_sending_it_feeds_one_token(make_harness: MakeHarness) -> None:
    harness = make_harness(**WHOLE)
    c = harness.conversation()
    for number in (1, 2):  # the first turn, and one after an answer
        read(harness, c, TEXT)
        assert len(harness.texts(c)) == 2 * number - 2  # it is not a message
        receipt = harness.receipt(harness.say(c, TEXT))
        assert (receipt.fed_tokens, receipt.miss_reason) == (1, None)
        assert receipt.ahead_tokens == receipt.delta_tokens - 1
        assert harness.texts(c)[-1] == harness.expected_text(c)
        wait_until_idle(harness)
    assert harness.manager.memory_view(ADA).reused_tokens_total == receipt.reused_tokens - receipt.ahead_tokens


def test_typing_on_after_a_whole_reading_crops_it_to_what_is_stable(make_harness: MakeHarness) -> None:
    harness = make_harness(**WHOLE)
    c, plain = harness.conversation(), make_harness(data_dir=harness.store.kv_dir.parent / "plain")
    harness.say(c, "Hello there")
    for draft in (TEXT, f"{TEXT[:-1]}, as", TEXT[:30]):
        read(harness, c, draft)
        assert text_of(kv_of(harness, c).tokens).endswith(draft)  # and then the end of the message
    stable = [ledger for _, ledger, _, _ in harness.engine.idle_counts if text_of(ledger).endswith("before the")]
    assert stable  # between the two readings to the end
    answer = harness.say(c, "The harbour wakes at noon")
    cold = plain.conversation()
    plain.say(cold, "Hello there")
    assert answer.text == plain.say(cold, "The harbour wakes at noon").text == harness.expected_text(c)
    assert harness.receipt(answer).fed_tokens == len("at noon") + 2


def test_a_draft_is_read_whole_only_once_it_is_quiet(make_harness: MakeHarness) -> None:
    harness = make_harness(read_ahead=True, draft_quiet_s=0.3)
    c = harness.conversation()
    for length in (*range(40, len(TEXT), 8), len(TEXT)):
        read(harness, c, TEXT[:length])
    whole = [ledger for _, ledger, _, _ in harness.engine.idle_counts if 259 in ledger]  # with the message's end
    assert whole == []
    until(lambda: harness.engine.idle_counts[-1][1][-1] == 259)
    assert harness.receipt(harness.say(c, TEXT)).fed_tokens == 1


def test_a_long_read_waits_until_the_draft_was_quiet_for_as_long(make_harness: MakeHarness) -> None:
    harness = make_harness(**WHOLE, engine=ScriptedEngine(fed_token_delay_s=0.03))
    c = harness.conversation()
    began = time.monotonic()
    harness.manager.read_ahead(ADA, c, "a word")
    until(lambda: harness.engine.idle_counts and harness.engine.idle_counts[-1][1][-1] == 259)
    reads = [fed for _, _, fed, _ in harness.engine.idle_counts]
    assert reads == [2, 6]  # the mark and "a"; then " word" and the message's end, 0.18 s of reading
    assert time.monotonic() - began > 2 * 0.18


@pytest.mark.alone
def test_a_message_ends_a_whole_reading_at_once(make_harness: MakeHarness) -> None:
    harness = make_harness(**WHOLE, engine=ScriptedEngine(fed_token_delay_s=0.02))
    c, other = harness.conversation(), harness.conversation("eve")
    harness.say(other, "Hello there", owner="eve")
    harness.manager.read_ahead(ADA, c, "a " + "w" * 80)  # 82 tokens at its end: more than a second and a half
    until(lambda: _current_kind(harness) is JobKind.WHOLE, timeout_s=20)
    until(lambda: len(harness.engine.running) == 1)
    receipt = harness.receipt(harness.say(other, "Hi", owner="eve"))
    assert receipt.ttft_s is not None
    assert receipt.ttft_s < 0.4  # five tokens of its own
    until(lambda: FinishReason.PREEMPTED in _reasons(harness) or FinishReason.ABORTED in _reasons(harness))
    wait_until_idle(harness)  # the reading resumed
    assert kv_of(harness, c).length_tokens == 84
    assert _reasons(harness)[-1] is FinishReason.READ


def test_the_next_key_ends_a_whole_reading_at_once(make_harness: MakeHarness) -> None:
    harness = make_harness(**WHOLE, engine=ScriptedEngine(fed_token_delay_s=0.02))
    c = harness.conversation()
    harness.manager.read_ahead(ADA, c, "a " + "w" * 80)
    until(lambda: _current_kind(harness) is JobKind.WHOLE and harness.engine.running, timeout_s=20)
    began = time.monotonic()
    harness.manager.read_ahead(ADA, c, "a " + "w" * 80 + " x")
    until(lambda: text_of(kv_of(harness, c).tokens).endswith("ww"))
    assert FinishReason.ABORTED in _reasons(harness)
    assert time.monotonic() - began < 81 * 0.02 + 0.4


def test_a_whole_reading_is_cropped_when_something_else_is_done(make_harness: MakeHarness) -> None:
    harness = make_harness(**WHOLE, disk_kv_budget_bytes=2**26)
    c = harness.conversation()
    harness.say(c, "Hello there")
    read(harness, c, TEXT)
    again = finish(harness.manager.regenerate(ADA, c))
    assert again.text == harness.expected_text(c)
    read(harness, c, TEXT)
    harness.manager.park(ADA, c)
    tokens = [harness.store.segments.token_ids(segment.key) for segment in harness.store.segments.every()]
    assert tokens
    assert all("harbour" not in text_of(ids) for ids in tokens)
    read(harness, c, "")
    assert kv_of(harness, c).length_tokens == len(harness.ledger(c)) + 1  # the mark of the next message
    message = harness.say(c, "Something else")
    assert message.text == harness.expected_text(c)


def _current_kind(harness: SessionHarness) -> JobKind | None:
    current = harness.manager.background.idle_worker._current  # noqa: SLF001 - which kind of job runs now
    return current[0].kind if current is not None else None


def _reasons(harness: SessionHarness) -> list[FinishReason]:
    return [reason for reason, _, _, _ in harness.engine.idle_counts]
