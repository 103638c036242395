"""The refusal of a field that cannot be honoured."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping

from app.problems import Problem


def unsupported(param: str, sentence: str) -> Problem:
    return Problem(400, sentence, "unsupported_parameter", param)


def own_names(fields: Iterable[str], names: Mapping[str, str]) -> tuple[str, ...]:
    """Fields by the names that the client's protocol has for them. See `renamed`."""
    return tuple(names.get(field, field) for field in fields)


@contextlib.contextmanager
def renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Inside the block a `Problem` speaks of fields by the names that the client's protocol has for them: `names` maps
    from those of a chat completion."""
    try:
        yield
    except Problem as problem:
        if problem.is_as_sent:
            raise
        for name, own in names.items():
            problem.message = re.sub(rf"(?<![\w.]){re.escape(name)}(?!\w|\.\w)", own, problem.message)
            if problem.param is not None and problem.param.split(".")[0] == name:
                problem.param = own + problem.param[len(name) :]
        raise
