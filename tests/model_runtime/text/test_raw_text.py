"""Texts without a template: a tokenizer's own ids, its own beginning, and control tokens as what they are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from model_runtime.text.chat_template import ChatTemplate
from model_runtime.text.raw_text import RawText
from tests.model_runtime.tiny_models import END_TOKEN, START_TOKEN, tiny_tokenizer


@pytest.fixture(scope="module")
def raw() -> RawText:
    tokenizer = tiny_tokenizer()
    return ChatTemplate(tokenizer, {tokenizer.convert_tokens_to_ids(END_TOKEN)}).raw


@given(st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]), max_size=40))
def test_a_text_comes_back(raw: RawText, text: str) -> None:
    assert raw.text(raw.ids(text, is_beginning=False)) == text


def test_control_tokens_are_these_tokens(raw: RawText) -> None:
    tokenizer = tiny_tokenizer()
    ids = raw.ids(f"{START_TOKEN}user\nHi{END_TOKEN}", is_beginning=True)
    assert (ids[0], ids[-1]) == tuple(tokenizer.convert_tokens_to_ids([START_TOKEN, END_TOKEN]))
    assert raw.text(ids) == f"{START_TOKEN}user\nHi{END_TOKEN}"
    assert raw.pieces(ids)[0] == START_TOKEN
    assert len(raw.pieces(ids)) == len(ids)


def test_what_the_tokenizer_writes_first_is_written_once() -> None:
    tokenizer = tiny_tokenizer()
    first = tokenizer.convert_tokens_to_ids(START_TOKEN)
    backend = tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(
        single=f"{START_TOKEN} $A {END_TOKEN}",
        special_tokens=[(START_TOKEN, first), (END_TOKEN, tokenizer.convert_tokens_to_ids(END_TOKEN))],
    )
    raw = RawText(tiny_tokenizer().backend_tokenizer, backend)
    own = raw.ids("Hi", is_beginning=False)
    assert raw.ids("Hi", is_beginning=True) == (first, *own)
    assert raw.ids(f"{START_TOKEN}Hi", is_beginning=True) == (first, *own)
    assert raw.ids("", is_beginning=True) == (first,)
