"""The check that settings use. `sessions` uses it too."""

from __future__ import annotations


def require(condition: bool, sentence: str) -> None:
    """Raises `ValueError` with `sentence`, which is meant for the user, unless `condition` holds."""
    if not condition:
        raise ValueError(sentence)
