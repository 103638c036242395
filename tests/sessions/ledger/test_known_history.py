"""The ids of an answer's calls that came from elsewhere: found by its history hash, and never guessed."""

from __future__ import annotations

import json

import pytest

from model_runtime.interface.chat import ChatMessage, ToolCall
from sessions.ledger import history_hash
from sessions.ledger.known_history import MOST_ORDERS, messages_of
from sessions.store.message_json import dump
from sessions.store.records import Node, NodeIds
from sessions.types import MessageStatus
from tests.sessions.byte_template import CALLS, ByteTemplate

TEMPLATE = ByteTemplate(takes_tools=True, has_thoughts=True)


def path_of(count: int, order: list[int]) -> tuple[Node, ...]:
    """A question, an answer with calls of another server, and their results in this order."""
    calls = tuple(ToolCall(f"call_{n}", "find", json.dumps({"n": n})) for n in range(count))
    asked = ChatMessage("user", "Find them.")
    answer = ChatMessage("assistant", "", calls)
    results = [ChatMessage("tool", f"Found {n}", tool_call_id=f"call_{n}") for n in order]
    first = history_hash.after("", [asked])
    hashes = (first, history_hash.after(first, [answer]), "later")

    def node(place: int, role: str, text: str, parts: str = "") -> Node:
        return Node(
            place + 1,
            place or None,
            role,
            text,
            MessageStatus.COMPLETE,
            None,
            NodeIds(0, ()),
            "bytes",
            "Scripted-1B",
            hashes[place],
            parts,
        )

    return (
        node(0, "user", asked.text),
        node(1, "assistant", CALLS.write("", calls)),
        node(2, "tool", "", dump(results)),
    )


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [0, 1], [1, 0], [3, 1, 0, 2]])
def test_the_ids_that_results_name_are_found(order: list[int]) -> None:
    _, answer, *results = messages_of(path_of(len(order), order), TEMPLATE)
    assert [call.call_id for call in answer.tool_calls] == [f"call_{n}" for n in range(len(order))]
    assert [result.tool_call_id for result in results] == [f"call_{n}" for n in order]


def test_what_no_order_leads_to_is_not_guessed_and_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    path, after, hashed = path_of(6, [5, 4, 3, 2, 1, 0]), history_hash.after, 0

    def counted(before: str, messages: list[ChatMessage], is_exact: bool) -> str:
        nonlocal hashed
        hashed += 1
        return after(before, messages, is_exact)

    monkeypatch.setattr(history_hash, "after", counted)
    answer = messages_of(path, TEMPLATE)[1]
    before = path[0].history_hash
    assert [call.call_id for call in answer.tool_calls] == [history_hash.call_id(before, n) for n in range(6)]
    assert hashed <= 2 * (8 + MOST_ORDERS)
