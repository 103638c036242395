"""A history that is resent is known again, letter by letter, and by its owner alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_runtime.messages import ChatMessage, ToolCall
from sessions import links
from tests.sessions.house import ADA, House
from tests.sessions.scripted_engine import ByteTemplate

CALL = ToolCall("abc", "f", "{}")
message = st.builds(
    ChatMessage,
    st.sampled_from(["system", "user", "assistant", "tool"]),
    st.text(max_size=8),
    st.just(()) | st.just((CALL,)),
    st.text(max_size=3),
    st.text(max_size=3),
)


@given(st.lists(message, max_size=6), st.lists(message, max_size=6))
def test_equal_links_mean_equal_histories(left: list[ChatMessage], right: list[ChatMessage]) -> None:
    start = links.root((), [])
    assert (links.after(start, left) == links.after(start, right)) == (left == right)
    assert links.load(links.dump(left)) == tuple(left)


@pytest.mark.parametrize("changed", ["hello", "Hello ", " Hello", "Hello\n", "Ηello"])
def test_white_space_case_and_lookalikes_count(changed: str) -> None:
    start = links.root((), [])
    assert links.after(start, [ChatMessage("user", "Hello")]) != links.after(start, [ChatMessage("user", changed)])


def test_tools_and_system_come_first() -> None:
    assert links.root((), []) != links.root(('{"a": 1}',), []) != links.root(('{"a": 1}', '{"b": 1}'), [])
    assert links.root((), [ChatMessage("system", "x")]) == links.page_root("x") != links.page_root("")


def test_turns_of_the_page_are_linked_too(house: House) -> None:
    conversation = house.conversation(system_prompt="Be brief.")
    answer = house.say(conversation, "Hello").text
    said = [ChatMessage("user", "Hello"), ChatMessage("assistant", answer)]
    asked = links.after(links.page_root("Be brief."), said)
    place, found = house.store.links.deepest(ADA, ["unknown", asked])
    assert (place, [one.message_id for one in found]) == (1, [house.path(conversation)[-1].message_id])
    assert house.store.links.deepest("bob", [asked]) == (-1, [])
    assert house.path(conversation)[-1].link == asked


def test_a_changed_system_prompt_breaks_the_chain(house: House) -> None:
    conversation = house.conversation()
    house.say(conversation, "Hello")
    settings = house.manager.view(ADA, conversation).settings
    house.manager.update_settings(ADA, conversation, type(settings)(settings.sampling, "Changed."))
    house.say(conversation, "Again")
    assert [bool(node.link) for node in house.path(conversation)] == [True, True, False, False]


def test_calls_get_ids_that_are_the_same_every_time() -> None:
    text = 'See <tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'
    first = links.answer_message(text, True, 7, ByteTemplate())
    assert first == links.answer_message(text, True, 7, ByteTemplate())
    assert first.text == "See "
    assert first.tool_calls[0].call_id.isalnum()
    assert first.tool_calls[0].call_id != links.answer_message(text, True, 8, ByteTemplate()).tool_calls[0].call_id
    assert links.answer_message(text, False, 7, ByteTemplate()) == ChatMessage("assistant", text)
