"""Siblings are kept, switching finds its way, and every branch is answered from its own ledger."""

from __future__ import annotations

import pytest

from sessions.errors import ConversationNotFound
from sessions.types import MissReason
from tests.sessions.house import ADA, House, finish


def test_regenerate_feeds_one_token_and_keeps_the_old_answer(house: House) -> None:
    c = house.conversation()
    old = house.say(c, "Hello")
    new = finish(house.manager.regenerate(ADA, c))
    assert (new.sibling_number, new.sibling_count) == (2, 2)
    assert new.receipt is not None
    assert new.receipt.fed_tokens == new.receipt.delta_tokens == 1
    assert new.text == old.text == house.expected_text(c)  # the twin is greedy


@pytest.mark.parametrize("turn", [0, 1, 2])
def test_any_user_message_can_be_edited(house: House, turn: int) -> None:
    c = house.conversation()
    for number in range(3):
        house.say(c, f"Question {number}")
    before = house.manager.view(ADA, c).messages
    answer = finish(house.manager.edit(ADA, c, before[2 * turn].message_id, "Another"))
    after = house.manager.view(ADA, c).messages
    assert len(after) == 2 * turn + 2
    assert after[: 2 * turn] == before[: 2 * turn]
    assert (after[-2].text, after[-2].sibling_number, after[-2].sibling_count) == ("Another", 2, 2)
    assert answer.text == house.expected_text(c)
    assert answer.receipt is not None
    assert answer.receipt.fed_tokens == answer.receipt.delta_tokens
    assert answer.receipt.miss_reason is None

    house.manager.switch_sibling(ADA, c, after[-2].message_id, -1)
    assert [m.text for m in house.manager.view(ADA, c).messages] == [m.text for m in before]


def test_an_answer_cannot_be_edited(house: House) -> None:
    c = house.conversation()
    answer = house.say(c, "Hello")
    with pytest.raises(ConversationNotFound):
        house.manager.edit(ADA, c, answer.message_id, "I never said that")


def test_a_message_of_another_conversation_is_not_found(house: House) -> None:
    """The same owner's, even: ids of messages are not a way around."""
    c, d = house.conversation(), None
    house.say(c, "Hello")
    d = house.conversation()
    house.say(d, "Hello")
    message_id = house.manager.view(ADA, c).messages[0].message_id
    with pytest.raises(ConversationNotFound):
        house.manager.edit(ADA, d, message_id, "Changed")
    with pytest.raises(ConversationNotFound):
        house.manager.switch_sibling(ADA, d, message_id, 1)


def test_going_on_after_a_switch_says_why_it_read_more(house: House) -> None:
    c = house.conversation()
    house.say(c, "First " + "x" * 100)
    first = house.manager.view(ADA, c).messages[0].message_id
    finish(house.manager.edit(ADA, c, first, "Second " + "y" * 100))
    house.manager.switch_sibling(ADA, c, first, 0)
    answer = house.say(c, "Go on with the first")
    assert house.texts(c)[0].startswith("First")
    assert answer.text == house.expected_text(c)
    assert answer.receipt is not None
    assert answer.receipt.miss_reason is MissReason.BRANCH_SWITCHED
    assert "another branch" in answer.receipt.miss_detail
    assert answer.receipt.fed_tokens > answer.receipt.delta_tokens


def test_switching_there_and_back_costs_nothing(house: House) -> None:
    c = house.conversation()
    house.say(c, "Hello")
    finish(house.manager.regenerate(ADA, c))
    message_id = house.manager.view(ADA, c).messages[-1].message_id
    house.manager.switch_sibling(ADA, c, message_id, -1)
    other = house.manager.view(ADA, c).messages[-1].message_id
    assert other != message_id
    house.manager.switch_sibling(ADA, c, other, +1)
    answer = house.say(c, "Go on")
    assert answer.receipt is not None
    assert answer.receipt.miss_reason is None
    assert answer.receipt.fed_tokens == answer.receipt.delta_tokens


def test_only_the_last_answer_offers_to_continue(house: House) -> None:
    c = house.conversation(max_new_tokens=3)
    house.say(c, "Hello")
    house.say(c, "Again")
    assert [m.can_continue for m in house.manager.view(ADA, c).messages] == [False, False, False, True]
