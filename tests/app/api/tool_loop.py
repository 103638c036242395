"""A model that calls a tool in nine turns and then says that it is done, for every protocol's test of a tool loop."""

from __future__ import annotations

import json

from tests.sessions.byte_template import END, TOOL

TURNS = 10
NAME = "look_up"
SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "number"}}}
LAST = "That is all."
THOUGHT = "<think>\nHm.\n</think>\n\n"


def worker(ledger: tuple[int, ...]) -> tuple[int, ...]:
    """Its arguments' keys are not in order, and one number is written in a way that JavaScript changes."""
    turn = ledger.count(TOOL)
    if turn == TURNS - 1:
        return (*LAST.encode(), END)
    call = json.dumps({"name": NAME, "arguments": {"b": turn, "a": 1.0}})
    return (*f"{THOUGHT}Step {turn}.<tool_call>{call}</tool_call>".encode(), END)


def fed_in_turn(result: str) -> int:
    """The pending end, then result, its marks and the generation prompt: no more than the turn adds."""
    return len(result.encode()) + 4
