"""The settings form: what a person typed becomes validated settings, or a sentence below its field."""

from __future__ import annotations

import pytest

from app.page import settings
from model_runtime.interface.sampling_params import SamplingParams
from sessions.types import ConversationSettings

LIMIT = 8192
CHOSEN = ConversationSettings(
    SamplingParams(
        temperature=0.123456789,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        max_new_tokens=64,
        seed=2**63 - 7,
        stop_strings=("END", "two words"),
        presence_penalty=1.5,
    ),
    "Be brief.",
)


def test_the_form_gives_back_what_it_was_given() -> None:
    form = settings.to_form(CHOSEN, LIMIT)
    assert set(form) == {field.name for field in settings.FIELDS}
    other = ConversationSettings(SamplingParams(presence_penalty=1.5))
    assert settings.from_form(form, other, LIMIT) == CHOSEN
    assert settings.from_form(settings.to_form(other, LIMIT), CHOSEN, LIMIT).sampling.seed is None


def test_what_is_not_touched_stays_even_where_the_form_cannot_show_it() -> None:
    odd = ConversationSettings(SamplingParams(max_new_tokens=100_000, stop_strings=("two\nlines",)), "")
    form = settings.to_form(odd, LIMIT)
    assert form["max_new_tokens"] == "8192"
    kept = settings.from_form({**form, "temperature": "0"}, odd, LIMIT).sampling
    assert (kept.max_new_tokens, kept.stop_strings, kept.temperature) == (100_000, ("two\nlines",), 0.0)


@pytest.mark.parametrize(
    ("name", "typed", "sentence"),
    [
        ("temperature", "9", "Temperature must be between 0 and 5"),
        ("temperature", " ", "Temperature must not be empty."),
        ("temperature", "0,7", "Temperature must be a number like 0.7, not “0,7”."),
        ("temperature", "nan", "Temperature must be a number"),
        ("temperature", "1e999", "Temperature must be between 0 and 5"),
        ("top_p", "0", "Top-p must be above 0"),
        ("top_k", "2.5", "Top-k must be a whole number, not “2.5”."),
        ("top_k", "1_000", "Top-k must be a whole number"),
        ("top_k", "٣", "Top-k must be a whole number"),
        ("max_new_tokens", "0", "Max new tokens must be a positive whole number"),
        ("max_new_tokens", "999999", "Max new tokens must be at most 8,192: no more fit into a conversation."),
        ("max_new_tokens", "9" * 5000, "Max new tokens must be a whole number"),
        ("seed", "1.5", "Seed must be a whole number, not “1.5”."),
        ("seed", "-1", "Seed must be empty or a whole number"),
        ("seed", str(2**63), "Seed must be empty or a whole number"),
        ("stop_strings", "\n".join("abcdefghijklmnopq"), "At most 16 stop strings"),
    ],
)
def test_each_wrong_value_is_refused_at_its_own_field(name: str, typed: str, sentence: str) -> None:
    form = {**settings.to_form(CHOSEN, LIMIT), name: typed}
    with pytest.raises(settings.SettingsRefused) as refused:
        settings.from_form(form, CHOSEN, LIMIT)
    assert list(refused.value.errors) == [name]
    assert refused.value.errors[name].startswith(sentence)


def test_all_wrong_fields_are_named_at_once() -> None:
    form = {**settings.to_form(CHOSEN, LIMIT), "seed": "x", "top_k": "y"}
    with pytest.raises(settings.SettingsRefused) as refused:
        settings.from_form(form, CHOSEN, LIMIT)
    assert set(refused.value.errors) == {"seed", "top_k"}
