"""Siblings are kept, switching finds its way, and every branch is answered from its own ledger."""

from __future__ import annotations

import pytest

from sessions.errors import ConversationNotFound
from sessions.types import MessageStatus, MissReason
from tests.sessions.session_harness import ADA, SessionHarness, finish, prompt_of


def test_regenerate_feeds_one_token_and_keeps_the_old_answer(harness: SessionHarness) -> None:
    c = harness.conversation()
    old = harness.say(c, "Hello")
    new = finish(harness.manager.regenerate(ADA, c))
    assert (new.sibling_number, new.sibling_count) == (2, 2)
    assert new.receipt is not None
    assert new.receipt.fed_tokens == new.receipt.delta_tokens == 1
    assert new.text == old.text == harness.expected_text(c)  # the twin is greedy


@pytest.mark.parametrize("turn", [0, 1, 2])
def test_any_user_message_can_be_edited(harness: SessionHarness, turn: int) -> None:
    c = harness.conversation()
    for number in range(3):
        harness.say(c, f"Question {number}")
    before = harness.manager.view(ADA, c).messages
    answer = finish(harness.manager.edit(ADA, c, before[2 * turn].message_id, "Another"))
    after = harness.manager.view(ADA, c).messages
    assert len(after) == 2 * turn + 2
    assert after[: 2 * turn] == before[: 2 * turn]
    assert (after[-2].text, after[-2].sibling_number, after[-2].sibling_count) == ("Another", 2, 2)
    assert answer.text == harness.expected_text(c)
    assert answer.receipt is not None
    assert answer.receipt.fed_tokens == answer.receipt.delta_tokens
    assert answer.receipt.miss_reason is None

    harness.manager.switch_sibling(ADA, c, after[-2].message_id, -1)
    assert [m.text for m in harness.manager.view(ADA, c).messages] == [m.text for m in before]


def test_an_answer_cannot_be_edited(harness: SessionHarness) -> None:
    c = harness.conversation()
    answer = harness.say(c, "Hello")
    with pytest.raises(ConversationNotFound):
        harness.manager.edit(ADA, c, answer.message_id, "I never said that")


def test_a_message_of_another_conversation_is_not_found(harness: SessionHarness) -> None:
    """The same owner's, even: ids of messages are not a way around."""
    c, d = harness.conversation(), None
    harness.say(c, "Hello")
    d = harness.conversation()
    harness.say(d, "Hello")
    message_id = harness.manager.view(ADA, c).messages[0].message_id
    with pytest.raises(ConversationNotFound):
        harness.manager.edit(ADA, d, message_id, "Changed")
    with pytest.raises(ConversationNotFound):
        harness.manager.switch_sibling(ADA, d, message_id, 1)


def test_going_on_after_a_switch_says_why_it_read_more(harness: SessionHarness) -> None:
    c = harness.conversation()
    harness.say(c, "First " + "x" * 100)
    first = harness.manager.view(ADA, c).messages[0].message_id
    finish(harness.manager.edit(ADA, c, first, "Second " + "y" * 100))
    harness.manager.switch_sibling(ADA, c, first, 0)
    answer = harness.say(c, "Go on with the first")
    assert harness.texts(c)[0].startswith("First")
    assert answer.text == harness.expected_text(c)
    assert answer.receipt is not None
    assert answer.receipt.miss_reason is MissReason.BRANCH_SWITCHED
    assert "another branch" in answer.receipt.miss_detail
    assert answer.receipt.fed_tokens > answer.receipt.delta_tokens
    parting, ledger = answer.receipt.parting, prompt_of(harness.path(c))
    assert parting is not None
    assert (parting.token, parting.of_tokens, parting.number, parting.role) == (1, len(ledger), 1, "user")
    assert (parting.before.split()[0], parting.after.split()[0]) == ("Second", "First")


def test_switching_there_and_back_costs_nothing(harness: SessionHarness) -> None:
    c = harness.conversation()
    harness.say(c, "Hello")
    finish(harness.manager.regenerate(ADA, c))
    message_id = harness.manager.view(ADA, c).messages[-1].message_id
    harness.manager.switch_sibling(ADA, c, message_id, -1)
    other = harness.manager.view(ADA, c).messages[-1].message_id
    assert other != message_id
    harness.manager.switch_sibling(ADA, c, other, +1)
    answer = harness.say(c, "Go on")
    assert answer.receipt is not None
    assert answer.receipt.miss_reason is None
    assert answer.receipt.fed_tokens == answer.receipt.delta_tokens


def test_only_the_last_answer_offers_to_continue(harness: SessionHarness) -> None:
    c = harness.conversation(max_new_tokens=3)
    harness.say(c, "Hello")
    harness.say(c, "Again")
    assert [m.can_continue for m in harness.manager.view(ADA, c).messages] == [False, False, False, True]


def test_an_answer_that_is_gone_on_with_stays_the_same_version(harness: SessionHarness) -> None:
    """Between two other versions, at its place, with exact ids and nothing read again."""
    c = harness.conversation(max_new_tokens=3)
    manager = harness.manager
    first = harness.say(c, "Hello").message_id
    begun = finish(manager.regenerate(ADA, c))
    finish(manager.regenerate(ADA, c))
    manager.switch_sibling(ADA, c, begun.message_id, 0)
    kept_ids, parts = harness.path(c)[-1].answer_ids, []
    for _ in range(2):
        parts.append(finish(manager.continue_answer(ADA, c)))
        assert harness.path(c)[-1].answer_ids[: len(kept_ids)] == kept_ids
        kept_ids = harness.path(c)[-1].answer_ids
    assert [(p.sibling_number, p.sibling_count, p.first_part_id) for p in parts] == [(2, 3, begun.message_id)] * 2
    assert all(part.receipt and part.receipt.fed_tokens == part.receipt.delta_tokens for part in parts)

    def seen() -> tuple[int, int]:
        last = manager.view(ADA, c).messages[-1]
        return last.message_id, last.sibling_number

    # A page that still shows an earlier part goes from there to the neighbours of the whole.
    for shown in (parts[-1].message_id, parts[0].message_id, begun.message_id):
        manager.switch_sibling(ADA, c, shown, -1)
        assert seen() == (first, 1)
        manager.switch_sibling(ADA, c, first, +1)
        assert seen() == (parts[-1].message_id, 2)
        manager.switch_sibling(ADA, c, shown, +1)
        assert seen()[1] == 3
        manager.switch_sibling(ADA, c, seen()[0], -1)
        assert seen() == (parts[-1].message_id, 2)


def test_a_part_that_could_not_be_gone_on_with_can_still_be_reached(harness: SessionHarness) -> None:
    c = harness.conversation(max_new_tokens=3)
    begun = harness.say(c, "Hello")
    harness.engine.fail = lambda generation: "The device ran out of memory."
    failed = finish(harness.manager.continue_answer(ADA, c))
    harness.engine.fail = lambda generation: None
    assert (failed.status, failed.sibling_number, failed.sibling_count) == (MessageStatus.FAILED, 2, 2)
    harness.manager.switch_sibling(ADA, c, failed.message_id, -1)
    assert harness.manager.view(ADA, c).messages[-1].message_id == begun.message_id
    again = finish(harness.manager.continue_answer(ADA, c))
    assert (again.sibling_number, again.sibling_count) == (1, 1)
    assert again.text.startswith(begun.text)
