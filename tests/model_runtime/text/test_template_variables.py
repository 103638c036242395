"""A chat template's variables: those that nobody sets are named, and only those."""

from __future__ import annotations

import pytest

from model_runtime.text.template_variables import template_notes, unset_variables
from tests.model_runtime.tiny_models import CHATML_TEMPLATE, tiny_tokenizer


@pytest.mark.parametrize(
    ("template", "unset"),
    [
        (CHATML_TEMPLATE, ()),
        ("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}{{ strftime_now('%Y') }}", ()),
        ("{% if enable_thinking is defined and enable_thinking is false %}x{% endif %}", ("enable_thinking",)),
        ("{% set a = namespace(b=1) %}{{ a.b }}{{ date_string or 'today' }}", ("date_string",)),
        ("{% macro m(x) %}{{ x }}{% endmacro %}{{ m(tools) }}{{ raise_exception('x') }}", ()),
        ("{% for d in documents %}{{ d.text }}{% endfor %}", ("documents",)),
        ("{% generation %}{{ messages }}{% endgeneration %}{{ custom_tools }}", ("custom_tools",)),
        ("{% if", ()),
    ],
)
def test_variables_that_nobody_sets(template: str, unset: tuple[str, ...]) -> None:
    assert unset_variables(template, frozenset({"bos_token", "eos_token"})) == unset


def test_notes_of_a_tokenizer() -> None:
    tokenizer = tiny_tokenizer()
    assert list(template_notes(tokenizer)) == []
    tokenizer.chat_template = {
        "default": CHATML_TEMPLATE,
        "tool_use": CHATML_TEMPLATE + "{{ keep_thoughts }}",
        "rag": CHATML_TEMPLATE + "{{ citations }}",
    }
    assert list(template_notes(tokenizer)) == [
        "The chat templates named rag are not used: no request chooses them.",
        (
            "The chat template can read keep_thoughts: without a request's chat_template_kwargs the template's own "
            "defaults apply."
        ),
    ]
    tokenizer.chat_template = None
    assert list(template_notes(tokenizer)) == []
