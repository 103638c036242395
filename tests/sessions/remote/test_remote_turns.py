"""Turns in a remote engine: the ledger is exact, and receipts say what the engine reported and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sessions.errors import NotKeptHere, SettingRefused
from sessions.types import MessageStatus, MissReason, Tier
from tests.model_runtime.remote.scripted_server import ScriptedServer
from tests.sessions.remote.conftest import Open, Start
from tests.sessions.session_harness import ADA, finish, prompt_of, until


def test_ten_turns_feed_only_what_is_new(server: ScriptedServer, open_on: Open) -> None:
    harness = open_on(server)
    conversation = harness.conversation()
    for number in range(10):
        message = harness.say(conversation, f"Question {number}?")
        receipt, path = harness.receipt(message), harness.path(conversation)
        assert message.status is MessageStatus.COMPLETE
        assert server.asked[-1]["prompt"] == list(prompt_of(path))
        assert list(path[-1].answer_ids) == server.answer(prompt_of(path))
        assert message.text == harness.template.plain(path[-1].answer_ids)
        assert receipt.reused_tokens + receipt.fed_tokens == len(prompt_of(path))
        assert (receipt.miss_reason, receipt.restored_bytes) == (None, 0)
        assert receipt.tier_before is (Tier.ENGINE if number else Tier.NONE)
        assert receipt.fed_tokens == receipt.delta_tokens


def test_a_miss_says_what_the_engine_had(server: ScriptedServer, open_on: Open) -> None:
    harness = open_on(server)
    conversation = harness.conversation()
    harness.say(conversation, "One.")
    kept = len(harness.ledger(conversation)) - 1
    server.cache = [harness.ledger(conversation)[:5]]
    receipt = harness.receipt(harness.say(conversation, "Two."))
    assert receipt.reused_tokens == 5
    assert receipt.miss_reason is MissReason.ENGINE_HELD_LESS
    again = kept - 5
    assert receipt.miss_detail == f"The engine had 5 of {kept} tokens, so {again} tokens were read again."
    until(lambda: harness.manager.memory_view(ADA).events)
    assert harness.manager.memory_view(ADA).events[0].text.startswith(f"Read {again} tokens of")


def test_what_is_not_reported_is_not_claimed(server: ScriptedServer, open_on: Open) -> None:
    harness = open_on(server)
    server.reports_reuse = False
    conversation = harness.conversation()
    for text in ("One.", "Two."):
        receipt = harness.receipt(harness.say(conversation, text))
        assert not receipt.is_reuse_reported
        assert (receipt.fed_tokens, receipt.reused_tokens, receipt.miss_reason) == (0, 0, None)
        assert (receipt.tier_before, receipt.saved_s) == (Tier.NONE, 0.0)
    stored = harness.manager.view(ADA, conversation).messages[-1].receipt
    assert stored is not None
    assert not stored.is_reuse_reported


def test_our_own_changes_are_named_before_the_engine(server: ScriptedServer, open_on: Open) -> None:
    harness = open_on(server)
    conversation = harness.conversation()
    harness.say(conversation, "One.")
    settings = harness.manager.view(ADA, conversation).settings
    harness.manager.update_settings(ADA, conversation, replace(settings, system_prompt="Be brief."))
    receipt = harness.receipt(harness.say(conversation, "Two."))
    assert receipt.miss_reason is MissReason.SYSTEM_PROMPT_CHANGED


def test_branches_and_continued_answers_are_exact(server: ScriptedServer, open_on: Open) -> None:
    harness = open_on(server)
    conversation = harness.conversation(max_new_tokens=6)
    for act in ("say", "regenerate", "continue", "edit"):
        match act:
            case "say":
                harness.say(conversation, "One.")
            case "regenerate":
                finish(harness.manager.regenerate(ADA, conversation))
            case "continue":
                finish(harness.manager.continue_answer(ADA, conversation))
            case "edit":
                first = harness.path(conversation)[0].message_id
                finish(harness.manager.edit(ADA, conversation, first, "Other."))
        path = harness.path(conversation)
        sent = tuple(server.asked[-1]["prompt"])
        assert harness.ledger(conversation)[: len(sent)] == sent
        assert list(harness.ledger(conversation)[len(sent) :]) == server.answer(sent)[:6]
        assert path[-1].text == harness.template.plain(path[-1].answer_ids)


def test_nothing_can_be_done_to_memory_elsewhere(server: ScriptedServer, open_on: Open) -> None:
    harness, manager = (opened := open_on(server)), opened.manager
    conversation = harness.conversation()
    harness.say(conversation, "One.")
    for act in (manager.pin, manager.unpin, manager.park, manager.drop_kv, manager.verify, manager.warm):
        with pytest.raises(NotKeptHere, match="decides by itself"):
            act(ADA, conversation)
    assert manager.prepare(ADA, conversation) is False
    view = manager.memory_view(ADA)
    assert not view.keeps_kv
    assert (view.device_used_bytes, view.disk_budget_bytes, view.pinned_bytes) == (0, 0, 0)
    row = view.rows[0]
    assert (row.tier, row.kv_tokens, row.used_bytes) == (Tier.ENGINE, 0, 0)
    assert row.engine_tokens == len(harness.ledger(conversation)) - 1


def test_conversations_of_a_long_time_take_no_memory(server: ScriptedServer, open_on: Open) -> None:
    """Their ids are in the database; a KV elsewhere holds a number."""
    harness = open_on(server)
    for _ in range(3):
        harness.say(harness.conversation(), "One.")
    held = harness.manager.memory.held
    assert [held.idle(one) for one in held.holdings()] != []
    assert all(ids == () for one in held.holdings() if (found := held.idle(one)) for ids in (found[1],))


def test_a_setting_that_the_engine_lacks_is_refused_before_anything_is_stored(
    server: ScriptedServer, open_on: Open
) -> None:
    harness = open_on(server)
    conversation = harness.conversation(presence_penalty=1.0)
    with pytest.raises(SettingRefused, match="presence"):
        harness.say(conversation, "One.")
    assert harness.texts(conversation) == []
    assert len(server.asked) == 1, "only the one at the start"


def test_titles_are_asked_for_behind_the_conversation(server: ScriptedServer, open_on: Open) -> None:
    harness = open_on(server, model_titles=True)
    server.answer = lambda ledger: [*server.ids("Kettles and tea"), server.end_id]
    conversation = harness.conversation()
    harness.say(conversation, "Tell me of kettles.")
    until(lambda: harness.manager.view(ADA, conversation).summary.title == "Kettles and tea")
    assert server.asked[-1]["prompt"][: len(harness.ledger(conversation))] == list(harness.ledger(conversation))
    receipt = harness.receipt(harness.say(conversation, "More."))
    assert receipt.fed_tokens <= receipt.delta_tokens, "the title is behind what the next turn needs"


def test_every_turn_of_a_conversation_has_one_header(start: Start, open_on: Open) -> None:
    server = start()
    harness = open_on(server)
    first, second = harness.conversation(), ""
    harness.say(first, "One.")
    second = harness.conversation()
    harness.say(second, "One.")
    harness.close()
    again = open_on(server)
    again.say(first, "Two.")
    sent = [headers.get("x-session-id", "") for headers in server.headers if headers.get("x-session-id")]
    assert sent[0] == sent[2] != sent[1], "also after a restart"
    assert first not in sent[0]
