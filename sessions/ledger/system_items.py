"""What clients said as the system in a conversation that they name. It belongs to the conversation, not to one of its
branches: each later response is told all of it, whatever a person does on the page between. Pure functions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from model_runtime.interface.chat import ChatMessage
from sessions.store import message_json
from sessions.text import clean_exactly
from sessions.types import SYSTEM_ROLES


@dataclass(frozen=True, slots=True)
class SystemItems:
    """`head` comes before the first message, `later` after one, each in its order."""

    head: tuple[ChatMessage, ...] = ()
    later: tuple[ChatMessage, ...] = ()

    def dump(self) -> str:
        """For the database; `load` is the inverse."""
        return json.dumps([message_json.dump(_clean(self.head)), message_json.dump(_clean(self.later))])

    def and_later(self, messages: Sequence[ChatMessage]) -> SystemItems:
        """With those of `messages` that are of the system, which were said last."""
        return replace(self, later=(*self.later, *(one for one in messages if one.role in SYSTEM_ROLES)))

    def missing_in(self, messages: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
        """The later ones that a path with these messages lacks: they were said on another branch."""
        there = Counter(_said(one) for one in messages if one.role in SYSTEM_ROLES)
        found: list[ChatMessage] = []
        for one in self.later:
            if there[_said(one)]:
                there[_said(one)] -= 1
            else:
                found.append(one)
        return tuple(found)


NO_SYSTEM_ITEMS = SystemItems()


def load(text: str) -> SystemItems:
    """The inverse of `SystemItems.dump`."""
    head, later = json.loads(text)
    return SystemItems(message_json.load(head), message_json.load(later))


def _clean(messages: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
    """As the messages of a path are stored."""
    return tuple(ChatMessage(one.role, clean_exactly(one.text), name=clean_exactly(one.name)) for one in messages)


def _said(message: ChatMessage) -> tuple[str, ...]:
    """Without the white space, which may be another one in a history that is sent again."""
    return message.role, message.name, *message.text.split()
