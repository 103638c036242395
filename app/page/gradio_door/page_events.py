"""Checks requests for the page's events and server functions, which Gradio identifies by number.

A request is rebuilt from its checked fields: Gradio sees its own numbers, values of the components' types, and no
session. (It would keep the last values of every session that a request names, up to 10,000 of them.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.page.asked import LARGEST_WHOLE, BadRequest

SESSION = "page"  # a server function must name one
_KINDS: Mapping[str, tuple[type, ...]] = {"Textbox": (str,), "Number": (int, float)}


@dataclass(frozen=True, slots=True)
class Event:
    """One handler: the component that triggers it, and the types of its inputs."""

    target_id: int
    inputs: tuple[tuple[type, ...], ...]


class GradioEvents:
    """The events and server functions of one page: `events` by number, `functions` as (component id, name)."""

    def __init__(self, page: Any) -> None:
        """`page` is the finished `gr.Blocks`. Raises `KeyError` for an input whose type has no check."""
        self.events = {
            number: Event(function.targets[0][0], tuple(_KINDS[type(one).__name__] for one in function.inputs))
            for number, function in page.fns.items()
        }
        self.functions = {
            (number, function.__name__)
            for number, block in page.blocks.items()
            for function in getattr(block, "server_fns", ())
        }

    def event(self, sent: object) -> dict[str, Any]:
        """A request for a handler, rebuilt. Raises `BadRequest`."""
        fields = _object(sent)
        event = self.events.get(_number(fields.get("fn_index")))
        values = fields.get("data")
        if event is None or not isinstance(values, list) or len(values) != len(event.inputs):
            raise BadRequest
        if not all(_fits(value, kind) for value, kind in zip(values, event.inputs, strict=True)):
            raise BadRequest
        return {
            "fn_index": fields["fn_index"],
            "trigger_id": event.target_id,
            "event_data": _flat(fields.get("event_data")),
            "data": values,
        }

    def question(self, sent: object) -> dict[str, Any]:
        """A request for a component's server function, rebuilt. Raises `BadRequest`."""
        fields = _object(sent)
        component_id, name = _number(fields.get("component_id")), fields.get("fn_name")
        if not isinstance(name, str) or (component_id, name) not in self.functions:
            raise BadRequest
        return {
            "component_id": component_id,
            "fn_name": name,
            "session_hash": SESSION,
            "data": _flat(fields.get("data")),
        }


def _flat(sent: object) -> dict[str, Any]:
    """The named strings, numbers and flags of an object; the page's script sends nothing else. Nested values are
    dropped, and so is "path": Gradio treats an object with a path as a file, and moves it or fails because it does not
    own it."""
    if not isinstance(sent, dict):
        return {}
    return {name: value for name, value in sent.items() if isinstance(value, str | int | float) and name != "path"}


def _object(sent: object) -> dict[str, Any]:
    if not isinstance(sent, dict):
        raise BadRequest
    return sent


def _number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadRequest
    return value


def _fits(value: object, kind: tuple[type, ...]) -> bool:
    """Whether a value has an input's type. An empty field is null; numbers must be finite."""
    if value is None:
        return True
    if isinstance(value, bool) or not isinstance(value, kind):
        return False
    return not isinstance(value, int | float) or (abs(value) <= LARGEST_WHOLE and math.isfinite(value))
