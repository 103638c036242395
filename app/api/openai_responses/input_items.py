"""What was said, as the items of OpenAI's Responses API, in pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from fastapi import Query

from app.api.openai_responses import output
from app.api.openai_responses.names import LOGPROBS
from app.api.translation.unsupported import unsupported
from app.problems import Problem
from model_runtime.interface.chat import ChatMessage

Order = Literal["asc", "desc"]
Limit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[str | None, Query(max_length=200, description="The last id of the previous page.")]
Included = Annotated[Sequence[str], Query(max_length=20)]
IncludedToo = Annotated[
    Sequence[str], Query(alias="include[]", max_length=20, description="As OpenAI's clients say it.")
]


def page_of(items: list[dict[str, Any]], limit: int, order: Order, after: str | None) -> dict[str, Any]:
    """The list's next `limit` items behind the one with the id `after`. Raises `Problem` for an unknown one."""
    if order == "desc":
        items.reverse()
    start = 0
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise Problem(400, "after must be the id of an item of this list.", "invalid_value", "after")
        start = ids.index(after) + 1
    return list_of(items[start : start + limit], start + limit < len(items))


def list_of(found: Sequence[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    ends = {"first_id": found[0]["id"] if found else None, "last_id": found[-1]["id"] if found else None}
    return {"object": "list", "data": found, **ends, "has_more": has_more}


def refuse_logprobs(*included: str) -> None:
    """The other things that can be included are of tools that there are not here, or in a response anyway."""
    if LOGPROBS in included:
        raise unsupported("include", "Log probabilities are not kept: they are in the response itself alone.")


def items_of_history(name: str, messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Their ids follow from the name, of a response or a conversation, and their place."""
    return [*_items(name, messages)]


def _items(name: str, messages: Sequence[ChatMessage]) -> Iterator[dict[str, Any]]:
    for place, message in enumerate(messages):
        ids = output.ItemIds(f"{name}_{place}")
        if message.role == "assistant":
            yield from output.items(ids, message)
        elif message.role == "tool":
            yield output.call_output_item(ids, message)
        else:
            yield output.asked_item(ids, message)
