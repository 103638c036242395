"""The `context` of /api/generate: what a client sends back to go on. Its numbers are no token ids but a name, which
leads to the stored answer, so that nothing is read again."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

_KEPT_AS = "context_"
_NUMBERS, _BITS = 8, 16


def new_context() -> tuple[int, ...]:
    """The name of an answer that begins now."""
    name = uuid.uuid4().int
    return tuple(name >> (_BITS * place) & (2**_BITS - 1) for place in range(_NUMBERS))


def kept_name(context: Sequence[int]) -> str | None:
    """The name under which the answer is kept; None for numbers that are no context of this server."""
    if len(context) != _NUMBERS or not all(0 <= number < 2**_BITS for number in context):
        return None
    return _KEPT_AS + "".join(f"{number:04x}" for number in context)
