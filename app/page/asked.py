"""Reads the fields of a request of the page's script. Anyone can send anything: a value of the wrong type is answered
with one sentence and reaches nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Asked = Mapping[str, Any]
LARGEST_WHOLE = 2**53 - 1  # the largest integer that a script represents exactly
MOST_LINE_CHARACTERS = 1000  # of a title or a search
_ID = re.compile(r"[0-9A-Za-z_-]{1,100}")


class BadRequest(ValueError):
    """The request has a field or value that the page's script never sends."""

    def __init__(self) -> None:
        super().__init__("The page asked for something that this server does not understand. Reload the page.")


def conversation_id(fields: Asked) -> str:
    """The conversation's id; "" for what cannot be an id. Raises `BadRequest`."""
    value = _string(fields, "conversation_id")
    return value if _ID.fullmatch(value) else ""


def text(fields: Asked, name: str) -> str:
    """A message or a draft, "" if there is none. The session manager checks its length. Raises `BadRequest`."""
    return _string(fields, name)


def line(fields: Asked, name: str) -> str:
    """A title or a search: short, and without characters that a database cannot store. Raises `BadRequest`."""
    value = _string(fields, name)
    if len(value) > MOST_LINE_CHARACTERS:
        raise BadRequest
    return value.replace("\0", "").encode("utf-8", "replace").decode()


def whole(fields: Asked, name: str, default: int = 0) -> int:
    """A whole number. Raises `BadRequest`."""
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > LARGEST_WHOLE:
        raise BadRequest
    return value


def flag(fields: Asked, name: str) -> bool:
    """A switch, off if it is missing. Raises `BadRequest`."""
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise BadRequest
    return value


def word(fields: Asked, name: str) -> str:
    """The name of an action, or one of a few choices. Raises `BadRequest`."""
    return _string(fields, name)


def _string(fields: Asked, name: str) -> str:
    value = fields.get(name, "")
    if not isinstance(value, str):
        raise BadRequest
    return value
