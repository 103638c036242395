"""The main job: a turn is committed first, fed only what is new, and answered from its own ledger."""

from __future__ import annotations

import itertools

import pytest

from model_runtime.interface.events import FinishReason, Listener
from model_runtime.interface.protocol import Generation, GenerationRequest
from sessions.errors import ConversationBusy, MessageRefused
from sessions.types import MessageStatus, RunPhase, Tier
from tests.sessions.byte_template import END
from tests.sessions.conftest import MakeHarness
from tests.sessions.scripted_engine import ScriptedEngine, checksum
from tests.sessions.session_harness import ADA, SessionHarness, finish, until


def slow(**settings: object) -> ScriptedEngine:
    """About half a second per answer: time enough to do something meanwhile on a busy machine."""
    return ScriptedEngine(lambda ledger: (*checksum(ledger).encode() * 3, END), token_delay_s=0.02, **settings)  # type: ignore[arg-type]


def test_ten_turns_feed_only_their_delta(harness: SessionHarness) -> None:
    c = harness.conversation()
    for number in range(10):
        before = len(harness.ledger(c))
        answer = harness.say(c, f"Question {number}")
        assert answer.receipt is not None
        prompt = len(harness.ledger(c)) - answer.receipt.sampled_tokens
        assert answer.text == harness.expected_text(c)
        assert answer.status is MessageStatus.COMPLETE
        ledger, fed, reused = harness.engine.counts[-1]
        assert fed == answer.receipt.fed_tokens == answer.receipt.delta_tokens == prompt - max(0, before - 1)
        assert (reused, len(ledger)) == (answer.receipt.reused_tokens, fed + reused)
        assert answer.receipt.miss_reason is None
        assert answer.receipt.tier_before is (Tier.DEVICE if number else Tier.NONE)
        assert answer.receipt.saved_s == pytest.approx(reused * 0.001)


def test_the_stop_token_is_the_last_id_and_not_in_the_kv(harness: SessionHarness) -> None:
    c = harness.conversation()
    harness.say(c, "Hello")
    assert harness.ledger(c)[-1] == END
    (row,) = harness.manager.memory_view(ADA).rows
    assert row.kv_tokens == row.ledger_tokens - 1 == len(harness.ledger(c)) - 1


def test_the_message_is_there_before_the_model_runs(make_harness: MakeHarness) -> None:
    harness = make_harness(engine=ScriptedEngine(fed_token_delay_s=0.01))
    c = harness.conversation()
    run = harness.manager.send(ADA, c, "Hello")
    user, answer = harness.manager.view(ADA, c).messages
    assert (user.text, user.status) == ("Hello", MessageStatus.COMPLETE)
    assert (answer.message_id, answer.status) == (run.message_id, MessageStatus.RUNNING)
    finish(run)


def test_a_subscriber_sees_waiting_reading_answering_done(make_harness: MakeHarness) -> None:
    harness = make_harness(engine=slow(fed_token_delay_s=0.001, max_concurrent=1))
    first, second = harness.conversation(), None
    blocking = harness.manager.send(ADA, first, "x" * 200)
    second = harness.conversation()
    run = harness.manager.send(ADA, second, "y" * 200)
    phases, texts, versions = [], [], []
    snapshot = run.snapshot()
    assert snapshot.queue_position == 1
    while True:
        phases.append(snapshot.phase)
        texts.append(snapshot.text)
        versions.append(snapshot.version)
        if snapshot.phase is RunPhase.DONE:
            break
        snapshot = run.wait(snapshot.version, 5.0)
    assert list(dict.fromkeys(phases)) == [RunPhase.WAITING, RunPhase.READING, RunPhase.ANSWERING, RunPhase.DONE]
    assert all(after.startswith(before) for before, after in itertools.pairwise(texts))
    assert versions == sorted(set(versions))
    assert snapshot.message is not None
    assert snapshot.message.receipt is not None
    assert snapshot.message.receipt.waited_s > 0
    finish(blocking)


def test_wait_returns_after_its_time(make_harness: MakeHarness) -> None:
    harness = make_harness(engine=ScriptedEngine(fed_token_delay_s=0.02))
    run = harness.manager.send(ADA, harness.conversation(), "Hello")
    assert run.wait(10_000, 0.01).phase is not RunPhase.DONE
    harness.manager.stop(ADA, run.conversation_id)
    finish(run)


def test_a_run_outlives_the_tab_that_asked_for_it(make_harness: MakeHarness) -> None:
    """A page that reloads finds the run; one that comes late finds its end; then the view has everything."""
    harness = make_harness(engine=slow())
    c = harness.conversation()
    message_id = harness.manager.send(ADA, c, "Hello").message_id
    found = harness.manager.active_run(ADA, c)
    assert found is not None
    done = finish(found)
    assert harness.manager.active_run(ADA, c) is None
    late = harness.manager.runs.find(c, message_id)
    assert late is not None
    assert late.snapshot().message == done
    assert harness.manager.view(ADA, c).messages[-1] == done


def test_finished_runs_are_forgotten_after_a_while(make_harness: MakeHarness) -> None:
    harness = make_harness(finished_run_keep_s=0.0)
    c = harness.conversation()
    first = harness.say(c, "Hello")
    harness.say(c, "Hello again")
    assert harness.manager.runs.find(c, first.message_id) is None


def test_one_answer_at_a_time(make_harness: MakeHarness) -> None:
    harness = make_harness(engine=slow())
    c = harness.conversation()
    harness.say(c, "Hello")
    run = harness.manager.send(ADA, c, "And now?")
    message_id = harness.manager.view(ADA, c).messages[0].message_id
    for call in (
        lambda: harness.manager.send(ADA, c, "Impatient"),
        lambda: harness.manager.regenerate(ADA, c),
        lambda: harness.manager.edit(ADA, c, message_id, "Impatient"),
        lambda: harness.manager.continue_answer(ADA, c),
        lambda: harness.manager.switch_sibling(ADA, c, message_id, 1),
        lambda: harness.manager.drop_kv(ADA, c),
    ):
        with pytest.raises(ConversationBusy, match="Stop it or wait"):
            call()
    finish(run)
    assert len(harness.texts(c)) == 4


def test_stop_keeps_the_text_and_the_conversation_goes_on_warm(make_harness: MakeHarness) -> None:
    harness = make_harness(engine=slow())
    c = harness.conversation()
    run = harness.manager.send(ADA, c, "Hello")
    until(lambda: run.snapshot().sampled_tokens > 3)
    harness.manager.stop(ADA, c)
    answer = finish(run)
    assert answer.status is MessageStatus.STOPPED
    assert answer.note == "Stopped."
    assert answer.can_continue
    assert answer.text
    assert harness.expected_text(c).startswith(answer.text)
    after = harness.say(c, "Go on")
    assert after.receipt is not None
    assert after.receipt.fed_tokens == after.receipt.delta_tokens == 1 + len(harness.template.next_turn(False, "Go on"))
    assert after.text == harness.expected_text(c)


def test_stop_while_reading(make_harness: MakeHarness) -> None:
    harness = make_harness(engine=ScriptedEngine(fed_token_delay_s=0.0005))
    c = harness.conversation()
    run = harness.manager.send(ADA, c, "x" * 2000)
    until(lambda: run.snapshot().fed_tokens > 0)
    harness.manager.stop(ADA, c)
    answer = finish(run)
    assert (answer.status, answer.text) == (MessageStatus.STOPPED, "")
    assert answer.receipt is not None
    assert answer.receipt.saved_s == 0
    assert harness.say(c, "Shorter").text == harness.expected_text(c)


def test_a_stop_in_the_queue_never_reaches_the_engine(make_harness: MakeHarness) -> None:
    harness = make_harness(engine=slow(max_concurrent=1))
    blocking = harness.manager.send(ADA, harness.conversation(), "first")
    c = harness.conversation()
    run = harness.manager.send(ADA, c, "second")
    behind = harness.manager.send(ADA, harness.conversation(), "third")
    until(lambda: behind.snapshot().queue_position == 2)  # the first one has left the line
    harness.manager.stop(ADA, c)
    answer = finish(run)
    assert (answer.status, answer.receipt) == (MessageStatus.STOPPED, None)
    assert behind.snapshot().queue_position <= 1
    finish(blocking)
    finish(behind)
    assert len(harness.engine.counts) == 2
    assert finish(harness.manager.continue_answer(ADA, c)).text == harness.expected_text(c)


def test_stop_without_a_run_is_nothing(harness: SessionHarness) -> None:
    harness.manager.stop(ADA, harness.conversation())


def test_the_token_limit_is_said_and_can_be_continued(harness: SessionHarness) -> None:
    c = harness.conversation(max_new_tokens=4)
    answer = harness.say(c, "Hello")
    assert answer.note == "The answer reached the limit of 4 new tokens."
    assert answer.can_continue
    text, first_id = answer.text, answer.message_id
    while harness.manager.view(ADA, c).messages[-1].can_continue:
        answer = finish(harness.manager.continue_answer(ADA, c))
        assert answer.text.startswith(text.rstrip("\ufffd"))  # a limit may fall inside a character
        assert answer.receipt is not None
        assert answer.receipt.fed_tokens == answer.receipt.delta_tokens == 1
        text = answer.text
    assert text == harness.expected_text(c)
    assert (answer.sibling_number, answer.sibling_count, answer.first_part_id) == (1, 1, first_id)
    with pytest.raises(MessageRefused, match="nothing to continue"):
        harness.manager.continue_answer(ADA, c)


def test_half_a_character_at_the_end_is_completed(harness: SessionHarness) -> None:
    """The limit falls between the two bytes of "é"."""
    harness.engine.answer = lambda ledger: (*"aé!".encode(), END)
    c = harness.conversation(max_new_tokens=2)
    assert harness.say(c, "Hello").text == "a\ufffd"
    assert finish(harness.manager.continue_answer(ADA, c)).text == "aé!"


def test_a_stop_string_is_neither_in_the_answer_nor_in_the_ledger(harness: SessionHarness) -> None:
    harness.engine.answer = lambda ledger: (*b"one\n\ntwo", END)
    c = harness.conversation(stop_strings=("\n\n",))
    answer = harness.say(c, "Hello")
    assert (answer.text, answer.status, answer.can_continue) == ("one", MessageStatus.COMPLETE, False)
    assert harness.path(c)[-1].finish_reason is FinishReason.STOP_STRING
    assert bytes(harness.path(c)[-1].answer_ids) == b"one"
    receipt = harness.say(c, "Again").receipt
    assert receipt is not None
    assert (receipt.fed_tokens, receipt.miss_reason) == (receipt.delta_tokens, None)
    assert receipt.sampled_tokens == len("one\n\n")


def test_the_context_limit_is_said(make_harness: MakeHarness) -> None:
    harness = make_harness(engine=ScriptedEngine(context_limit_tokens=60, answer=lambda ledger: tuple(b"x" * 100)))
    answer = harness.say(harness.conversation(), "x" * 20)
    assert "reached the model's 60-token limit" in answer.note
    assert not answer.can_continue


def test_nothing_to_regenerate_or_continue(harness: SessionHarness) -> None:
    c = harness.conversation()
    with pytest.raises(MessageRefused, match="no answer to regenerate"):
        harness.manager.regenerate(ADA, c)
    with pytest.raises(MessageRefused, match="nothing to continue"):
        harness.manager.continue_answer(ADA, c)


def test_titles(harness: SessionHarness) -> None:
    c = harness.conversation()
    assert harness.manager.view(ADA, c).summary.title == "New conversation"
    harness.say(c, "Trip to Lisbon\nThree days")
    assert harness.manager.view(ADA, c).summary.title == "Trip to Lisbon"
    harness.say(c, "What first?")
    harness.manager.rename(ADA, c, " My\ntrip\0 ")
    assert harness.manager.view(ADA, c).summary.title == "My trip"
    with pytest.raises(MessageRefused, match="at least one visible character"):
        harness.manager.rename(ADA, c, "\x07\n ")


def test_a_name_given_before_the_first_message_stays(harness: SessionHarness) -> None:
    c = harness.conversation()
    harness.manager.rename(ADA, c, "Mine")
    harness.say(c, "Hello")
    assert harness.manager.view(ADA, c).summary.title == "Mine"


def test_the_list_is_newest_first_and_searchable(harness: SessionHarness) -> None:
    ids = []
    for text in ("alpha beta", "gamma", "delta"):
        ids.append(harness.conversation())
        harness.say(ids[-1], text)
    harness.say(ids[0], "again")
    assert [s.conversation_id for s in harness.manager.list_conversations(ADA)] == [ids[0], ids[2], ids[1]]
    assert [s.conversation_id for s in harness.manager.list_conversations(ADA, " BETA ")] == [ids[0]]
    assert harness.manager.list_conversations(ADA, "\ud800\0") == []


def test_delete_stops_the_run_and_frees_everything(make_harness: MakeHarness) -> None:
    harness = make_harness(engine=slow())
    c = harness.conversation()
    run = harness.manager.send(ADA, c, "Hello")
    until(lambda: run.snapshot().sampled_tokens > 2)
    harness.manager.delete(ADA, c)
    assert run.snapshot().phase is RunPhase.DONE
    assert harness.engine.allocated_bytes == 0
    assert harness.manager.list_conversations(ADA) == []
    assert harness.manager.memory_view(ADA).events == ()


def test_one_users_many_messages_do_not_hold_up_anothers(make_harness: MakeHarness) -> None:
    harness = make_harness(engine=slow(max_concurrent=1))
    keys: list[str] = []
    submit = harness.engine.submit

    def watched(request: GenerationRequest, listener: Listener) -> Generation:
        keys.append(request.fairness_key)
        return submit(request, listener)

    harness.engine.submit = watched  # type: ignore[method-assign, assignment]
    runs = []
    for number in range(4):
        c = harness.conversation()
        runs.append(
            harness.manager.send(ADA, c, f"Read this, number {number}")
        )  # a conversation is new while it has text
    own = harness.manager.create_conversation("ben").conversation_id
    runs.append(harness.manager.send("ben", own, "Hello"))
    for run in runs:
        finish(run)
    assert keys == [ADA, ADA, "ben", ADA, ADA] or keys == [ADA, "ben", ADA, ADA, ADA]
