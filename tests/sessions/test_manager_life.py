"""Start, close, and things that go wrong in between; sixteen threads at once."""

from __future__ import annotations

import logging
import random
import threading
import time

import pytest

from model_runtime.interface.events import TokenDelta
from sessions.errors import ConversationBusy, SessionError, StoreError
from sessions.turns.run import Run
from sessions.types import MessageStatus, RunPhase
from tests.polling import pause
from tests.sessions.conftest import MakeHarness
from tests.sessions.scripted_engine import ScriptedEngine, text_of
from tests.sessions.session_harness import ADA, SessionHarness, finish, prompt_of, until


def test_close_keeps_what_was_said_as_interrupted(make_harness: MakeHarness) -> None:
    harness = make_harness(engine=ScriptedEngine(token_delay_s=0.01, max_concurrent=1))
    running = harness.manager.send(ADA, harness.conversation(), "Hello")
    waiting = harness.manager.send(ADA, harness.conversation(), "Hello to you too")
    until(lambda: running.snapshot().sampled_tokens > 3)
    began = time.monotonic()
    harness.manager.close()
    assert time.monotonic() - began < 1.5
    for run in (running, waiting):
        snapshot = run.snapshot()
        assert snapshot.phase is RunPhase.DONE
        assert snapshot.message is not None
        assert snapshot.message.status is MessageStatus.INTERRUPTED
    assert running.snapshot().text
    with pytest.raises(ConversationBusy, match="shutting down"):
        harness.manager.send(ADA, running.conversation_id, "Too late")
    harness.manager.close()
    harness.close()
    again = make_harness()
    for run in (running, waiting):
        answer = finish(again.manager.continue_answer(ADA, run.conversation_id))
        assert answer.text == again.expected_text(run.conversation_id)


def test_close_does_not_wait_for_an_engine_that_hangs(make_harness: MakeHarness) -> None:
    harness = make_harness(engine=ScriptedEngine(token_delay_s=3.0), close_timeout_s=0.2)
    run = harness.manager.send(ADA, harness.conversation(), "Hello")
    until(lambda: run.snapshot().phase is RunPhase.READING)
    began = time.monotonic()
    harness.manager.close()
    assert time.monotonic() - began < 2
    assert run.snapshot().message is not None
    assert run.snapshot().message.status is MessageStatus.INTERRUPTED  # type: ignore[union-attr]


def test_close_before_start(make_harness: MakeHarness) -> None:
    harness = make_harness()
    from sessions.config import SessionConfig
    from sessions.manager import SessionManager

    SessionManager(harness.store, harness.engine, harness.template, SessionConfig(device_kv_budget_bytes=1)).close()


def test_text_and_ids_are_checkpointed_while_the_answer_runs(make_harness: MakeHarness) -> None:
    harness = make_harness(engine=ScriptedEngine(token_delay_s=0.01))
    c = harness.conversation()
    run = harness.manager.send(ADA, c, "Hello")

    def kept() -> int:
        return len(harness.path(c)[-1].ids.token_ids)

    until(lambda: kept() > 2)
    node = harness.path(c)[-1]
    assert node.status is MessageStatus.RUNNING
    assert bytes(node.ids.token_ids).decode(errors="ignore") == node.text
    view = harness.manager.view(ADA, c)
    assert len(view.messages[-1].text) >= len(node.text)
    assert view.ledger_tokens >= len(harness.ledger(c))
    finish(run)


def test_an_answer_that_cannot_be_stored_is_kept_until_it_can(make_harness: MakeHarness) -> None:
    """What a person saw stays, though its run is long forgotten; nothing goes on from it before it is in the database,
    and then it is there with its ids and its receipt."""
    harness = make_harness(finished_run_keep_s=0.0)
    c = harness.conversation()
    harness.say(c, "Hello")
    other = harness.conversation()
    finish_answer, tried = harness.store.messages.finish_answer, []

    def full(*args: object, **more: object) -> None:
        tried.append(args)
        raise StoreError("The disk is full.")

    harness.store.messages.finish_answer = full  # type: ignore[method-assign, assignment]
    answer = harness.say(c, "Again")
    assert (answer.status, answer.is_stored) == (MessageStatus.COMPLETE, False)
    assert answer.note == "Not stored yet: it is kept in memory until it can be. The disk is full."
    assert answer.receipt is not None
    for where in (c, other):
        with pytest.raises(StoreError, match="The disk is full"):
            harness.manager.send(ADA, where, "And now?")
    assert harness.texts(other) == []
    shown = harness.manager.view(ADA, c).messages[-1]
    assert (shown.text, shown.status, shown.is_stored) == (answer.text, MessageStatus.COMPLETE, False)
    assert harness.path(c)[-1].status is MessageStatus.RUNNING

    harness.store.messages.finish_answer = finish_answer  # type: ignore[method-assign]
    until(lambda: harness.path(c)[-1].status is MessageStatus.COMPLETE)  # by itself
    last = harness.manager.view(ADA, c).messages[-1]
    assert (last.text, last.note, last.receipt, last.is_stored) == (harness.expected_text(c), "", answer.receipt, True)
    assert harness.say(other, "Elsewhere").text == harness.expected_text(other)
    receipt = harness.receipt(harness.say(c, "Go on"))
    assert receipt.miss_reason is None  # its KV was as long as its ledger all the while


def test_a_deleted_conversation_has_nothing_kept(harness: SessionHarness) -> None:
    c = harness.conversation()
    harness.say(c, "Hello")
    finish_answer = harness.store.messages.finish_answer

    def full(*args: object, **more: object) -> None:
        raise StoreError("The disk is full.")

    harness.store.messages.finish_answer = full  # type: ignore[method-assign, assignment]
    harness.say(c, "Again")
    harness.manager.delete(ADA, c)
    harness.store.messages.finish_answer = finish_answer  # type: ignore[method-assign]
    other = harness.conversation()
    assert harness.say(other, "Elsewhere").status is MessageStatus.COMPLETE


@pytest.mark.parametrize("where", ["sample", "complete"])
def test_one_runs_error_does_not_end_the_recorder(
    harness: SessionHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    c = harness.conversation()
    harness.say(c, "Hello")

    def broken(self: Run, event: TokenDelta) -> None:
        raise RuntimeError("a bug of ours")

    with monkeypatch.context() as patch, caplog.at_level(logging.CRITICAL):
        patch.setattr(Run, where, broken)
        answer = harness.say(c, "Again")
    assert answer.status is MessageStatus.FAILED
    assert "went wrong" in answer.note
    assert harness.manager.view(ADA, c).messages[-1].status is MessageStatus.FAILED
    assert finish(harness.manager.regenerate(ADA, c)).text == harness.expected_text(c)


def test_nothing_of_a_message_is_logged(harness: SessionHarness, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        c = harness.conversation()
        harness.say(c, "my-secret-word")
        harness.manager.drop_kv(ADA, c)
        harness.say(c, "my-secret-word again")
        harness.manager.delete(ADA, c)
    assert "kv_dropped" in caplog.text
    assert "my-secret-word" not in caplog.text


def test_sixteen_threads(make_harness: MakeHarness) -> None:
    """Four owners, each hammered by four threads on the same conversations, with room for few of them."""
    harness = make_harness(budget_bytes=1200 * 1024)
    owners = [f"owner-{n}" for n in range(4)]
    conversations: dict[str, list[str]] = {}
    for owner in owners:
        conversations[owner] = []
        for number in range(3):
            conversations[owner].append(harness.conversation(owner, max_new_tokens=80))
            harness.say(conversations[owner][-1], f"{owner} {number}", owner)
    errors: list[BaseException] = []
    over: list[int] = []
    harness.engine.on_step = lambda: over.append(1) if harness.engine.allocated_bytes > 1200 * 1024 else None

    def hammer(owner: str, seed: int) -> None:
        dice, manager = random.Random(seed), harness.manager
        try:
            for _ in range(60):
                c = dice.choice(conversations[owner])
                act = dice.randrange(8)
                try:
                    if act < 3:
                        manager.send(owner, c, f"{owner} says {dice.random()}")
                    elif act == 3:
                        manager.regenerate(owner, c)
                    elif act == 4:
                        manager.stop(owner, c)
                    elif act == 5:
                        manager.drop_kv(owner, c)
                    elif act == 6:
                        manager.view(owner, c)
                        manager.list_conversations(owner, "says")
                    else:
                        manager.memory_view(owner)
                except ConversationBusy:
                    pause(0.003)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=hammer, args=(owner, n)) for owner in owners for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    until(lambda: not harness.manager.runs.all_active())
    assert errors == []
    assert over == []
    for owner in owners:
        for c in conversations[owner]:
            path = harness.path(c, owner)
            assert all(owner in node.text for node in path if node.role == "user")
            for number in range(2, len(path) + 1, 2):
                answer = path[number - 1]
                expected = text_of(harness.engine.answer(prompt_of(path[:number])))
                assert expected.startswith(answer.text.rstrip("\ufffd"))
                assert answer.status in (MessageStatus.COMPLETE, MessageStatus.STOPPED)


def test_every_refusal_is_a_session_error() -> None:
    from sessions import errors

    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, Exception):
            assert issubclass(value, SessionError), name
