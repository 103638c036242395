"""Builds calls of every public method from its signature, so that new methods are tried too."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from model_runtime.interface.sampling_params import SamplingParams
from sessions.manager import SessionManager
from sessions.types import ConversationSettings

BY_NAME: dict[str, Any] = {"step": 1}
BY_TYPE: dict[str, Any] = {
    "str": "Hello",
    "int": 1,
    "bool": True,
    "float": 1.0,
    "ConversationSettings": ConversationSettings(SamplingParams()),
}
Method = Callable[..., object]


def methods_taking(*names: str) -> dict[str, inspect.Signature]:
    """Public methods of the manager that have all these parameters."""
    found = {}
    for name, method in inspect.getmembers(SessionManager, inspect.isfunction):
        signature = inspect.signature(method)
        if not name.startswith("_") and set(names) <= set(signature.parameters):
            found[name] = signature
    return found


def arguments(signature: inspect.Signature, **given: Any) -> dict[str, Any]:
    """`given`, and a fitting value for every other parameter without a default."""
    made: dict[str, Any] = {}
    for name, parameter in list(signature.parameters.items())[1:]:
        if name in given:
            made[name] = given[name]
        elif parameter.default is inspect.Parameter.empty:
            made[name] = BY_NAME[name] if name in BY_NAME else BY_TYPE[str(parameter.annotation)]
    return made


def mangled(conversation_id: str) -> Iterator[str]:
    """What a person might try who has seen an id, or a part of one."""
    yield from (conversation_id.upper(), conversation_id[:-1], conversation_id + "0", f" {conversation_id}", "")
    yield from (f"{conversation_id}\0", f"{conversation_id}\n", f"../{conversation_id}", "%", "_" * 32, "0" * 32)
    yield from ("../../etc/passwd", "\ud800", "' OR 1=1 --", "*", conversation_id.replace("a", "\u0430") + "\u0430")
