"""The settings form."""

from __future__ import annotations

from typing import Any

import pytest

from app.page import settings
from model_runtime.interface.sampling_params import SamplingParams
from sessions.types import ConversationSettings

CHOSEN = ConversationSettings(
    SamplingParams(
        temperature=0.0, top_p=0.9, top_k=40, min_p=0.05, max_new_tokens=64, seed=7, stop_strings=("END", "two words")
    ),
    "Be brief.",
)


def test_the_form_gives_back_what_it_was_given() -> None:
    assert settings.from_form(settings.to_form(CHOSEN)) == CHOSEN


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("temperature", 9, "Temperature must be between 0 and 5"),
        ("temperature", None, "Temperature must not be empty."),
        ("top_p", 0, "Top-p must be above 0"),
        ("top_k", 1.5, "Top-k must be a whole number"),
        ("max_new_tokens", 0, "Max new tokens must be a positive whole number"),
        ("seed", -1, "Seed must be empty or a whole number"),
        ("stop_strings", "\n".join("abcdefghijklmnopq"), "At most 16 stop strings"),
    ],
)
def test_wrong_values_are_refused_with_a_sentence(name: str, value: Any, sentence: str) -> None:
    form = settings.to_form(CHOSEN)
    form[[field.name for field in settings.FIELDS].index(name)] = value
    with pytest.raises(ValueError, match=sentence):
        settings.from_form(form)
