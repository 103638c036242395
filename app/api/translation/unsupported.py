"""The refusal of a field that cannot be honoured."""

from __future__ import annotations

from app.problems import Problem


def unsupported(param: str, sentence: str) -> Problem:
    return Problem(400, sentence, "unsupported_parameter", param)
