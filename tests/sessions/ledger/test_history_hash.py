"""A resent history is recognised, character by character, and only for its owner."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_runtime.interface.chat import ChatMessage, ToolCall
from sessions.ledger import history_hash
from sessions.store import message_json
from tests.sessions.scripted_engine import ByteTemplate
from tests.sessions.session_harness import ADA, SessionHarness

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
    start = history_hash.root((), [])
    assert (history_hash.after(start, left) == history_hash.after(start, right)) == (left == right)
    assert message_json.load(message_json.dump(left)) == tuple(left)


@pytest.mark.parametrize("changed", ["hello", "Hello ", " Hello", "Hello\n", "Ηello"])
def test_white_space_case_and_lookalikes_count(changed: str) -> None:
    start = history_hash.root((), [])
    assert history_hash.after(start, [ChatMessage("user", "Hello")]) != history_hash.after(
        start, [ChatMessage("user", changed)]
    )


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ('{"a": 1, "b": "x"}', '{"b":"x","a":1}', True),
        ('{"a": 1.0}', '{"a": 1}', True),
        ('{"a": "é"}', '{"a": "\\u00e9"}', True),
        ('{"a": [1, 2]}', '{"a": [2, 1]}', False),
        ('{"a": 1}', '{"a": "1"}', False),
        ('{"a": true}', '{"a": 1}', False),
        ("{city", "{city ", False),
        ("", "{}", False),
    ],
)
def test_arguments_are_compared_as_json(one: str, other: str, is_same: bool) -> None:
    start = history_hash.root((), [])
    hashes = {
        history_hash.after(start, [ChatMessage("assistant", "", (ToolCall("abc", "f", arguments),))])
        for arguments in (one, other)
    }
    assert (len(hashes) == 1) == is_same


def test_an_answer_is_known_again_without_what_cannot_be_stored() -> None:
    start = history_hash.root((), [])
    written = history_hash.after(start, [ChatMessage("assistant", "a\0b")])
    assert written == history_hash.after(start, [ChatMessage("assistant", "ab")])


def test_tools_and_system_come_first() -> None:
    assert (
        history_hash.root((), [])
        != history_hash.root(('{"a": 1}',), [])
        != history_hash.root(('{"a": 1}', '{"b": 1}'), [])
    )
    assert (
        history_hash.root((), [ChatMessage("system", "x")]) == history_hash.page_root("x") != history_hash.page_root("")
    )


def test_turns_of_the_page_are_linked_too(harness: SessionHarness) -> None:
    conversation = harness.conversation(system_prompt="Be brief.")
    answer = harness.say(conversation, "Hello").text
    said = [ChatMessage("user", "Hello"), ChatMessage("assistant", answer)]
    asked = history_hash.after(history_hash.page_root("Be brief."), said)
    place, found = harness.store.history_hashes.deepest(ADA, ["unknown", asked])
    assert (place, [one.message_id for one in found]) == (1, [harness.path(conversation)[-1].message_id])
    assert harness.store.history_hashes.deepest("bob", [asked]) == (-1, [])
    assert harness.path(conversation)[-1].history_hash == asked


def test_a_changed_system_prompt_breaks_the_chain(harness: SessionHarness) -> None:
    conversation = harness.conversation()
    harness.say(conversation, "Hello")
    settings = harness.manager.view(ADA, conversation).settings
    harness.manager.update_settings(ADA, conversation, type(settings)(settings.sampling, "Changed."))
    harness.say(conversation, "Again")
    assert [bool(node.history_hash) for node in harness.path(conversation)] == [True, True, False, False]


def test_calls_get_ids_that_are_the_same_every_time() -> None:
    text = 'See <tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'
    first = history_hash.answer_message(text, True, "7", ByteTemplate())
    assert first == history_hash.answer_message(text, True, "7", ByteTemplate())
    assert first.text == "See "
    assert first.tool_calls[0].call_id.isalnum()
    assert (
        first.tool_calls[0].call_id
        != history_hash.answer_message(text, True, "8", ByteTemplate()).tool_calls[0].call_id
    )
    assert history_hash.answer_message(text, False, "7", ByteTemplate()) == ChatMessage("assistant", text)


@pytest.mark.parametrize(
    ("role", "trims", "is_same"),
    [
        ("user", True, True),
        ("user", False, False),
        ("tool", True, False),
        ("tool", False, False),
        ("system", True, True),
        ("system", False, True),
        ("developer", False, True),
        ("assistant", False, True),
    ],
)
def test_white_space_at_the_ends(role: str, trims: bool, is_same: bool) -> None:
    """A template that trims questions may write the results of tools as they are, as Llama 3's does."""
    found = {history_hash.after("", [ChatMessage(role, text)], trims=trims) for text in ("x y", "x y\n")}
    assert (len(found) == 1) is is_same
