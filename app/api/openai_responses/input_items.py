"""What a response was made from, as the items of OpenAI's Responses API, in pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from app.api.openai_responses import output
from app.problems import Problem
from model_runtime.interface.chat import ChatMessage

Order = Literal["asc", "desc"]


def page_of(
    response_id: str, messages: Sequence[ChatMessage], limit: int, order: Order, after: str | None
) -> dict[str, Any]:
    """The list's next `limit` items behind the one with the id `after`. Raises `Problem` for an unknown one."""
    items = [*_items(response_id, messages)]
    if order == "desc":
        items.reverse()
    start = 0
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise Problem(400, "after must be the id of an item of this response.", "invalid_value", "after")
        start = ids.index(after) + 1
    found = items[start : start + limit]
    return {
        "object": "list",
        "data": found,
        "first_id": found[0]["id"] if found else None,
        "last_id": found[-1]["id"] if found else None,
        "has_more": start + limit < len(items),
    }


def _items(response_id: str, messages: Sequence[ChatMessage]) -> Iterator[dict[str, Any]]:
    """Their ids follow from the response's id and their place."""
    for place, message in enumerate(messages):
        ids = output.ItemIds(f"{response_id}_{place}")
        if message.role == "assistant":
            yield from output.items(ids, message)
        elif message.role == "tool":
            yield output.call_output_item(ids, message)
        else:
            yield output.asked_item(ids, message)
