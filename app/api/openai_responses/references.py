"""Items of an input that only name an item of an earlier answer, as the AI SDK sends them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from app.api.openai_responses import output
from app.api.openai_responses.names import RESPONSE
from app.api.translation.unsupported import unsupported
from sessions.errors import ConversationBusy, ConversationNotFound
from sessions.named_responses import NamedResponses
from sessions.types import MessageStatus

KIND = "item_reference"
_OF_AN_ANSWER = re.compile(r"(?:msg|rs|fc)_([0-9a-f]{32})(?:_\d+)?")


def resolved(
    found: str | Sequence[dict[str, Any]], responses: NamedResponses, owner_id: str, field: str = "input"
) -> str | list[dict[str, Any]]:
    """The input, or another `field`, with the items that are named. Raises `Problem` for a name that leads to none, and
    `ConversationBusy` while the answer that it belongs to is being written."""
    if isinstance(found, str):
        return found

    @cache
    def items_of(response_id: str) -> dict[str, dict[str, Any]]:
        return _items_of(responses, owner_id, response_id)

    return [_meant(f"{field}.{place}", item, items_of) for place, item in enumerate(found)]


def _meant(place: str, item: dict[str, Any], items_of: Callable[[str], dict[str, dict[str, Any]]]) -> dict[str, Any]:
    if item.get("type") != KIND:
        return item
    name = item.get("id")
    response = _OF_AN_ANSWER.fullmatch(name) if isinstance(name, str) else None
    meant = items_of(f"{RESPONSE}{response.group(1)}").get(str(name)) if response else None
    if meant is None:
        sentence = f"{place}: This item is not kept here. Send it whole, or answers with store: true."
        raise unsupported(f"{place}.id", sentence)
    return meant


def _items_of(responses: NamedResponses, owner_id: str, response_id: str) -> dict[str, dict[str, Any]]:
    """What a response consists of, by the items' ids; nothing where it is unknown."""
    try:
        found = responses.find(owner_id, response_id)
    except ConversationNotFound:
        return {}
    if found.message.status is MessageStatus.RUNNING:
        raise ConversationBusy("The response that an item is of is still being written. Wait for its end.")
    return {item["id"]: item for item in output.items(output.ItemIds(response_id), found.said)}
