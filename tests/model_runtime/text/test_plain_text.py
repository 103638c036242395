"""No user can type a token that ends their message, with any kind of token and any tokenizer."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_runtime.interface.chat import ChatMessage
from model_runtime.text.chat_template import ChatTemplate
from model_runtime.text.plain_text import control_contents, hidden_tokens
from tests.model_runtime import tiny_tokenizers as tiny

FLAGS = [{}, {"lstrip": True, "rstrip": True}, {"normalized": True}, {"single_word": True}]
CASES = [pytest.param(family, flags, id=f"{family}-{flags}") for family in tiny.FAMILIES for flags in FLAGS]
texts = st.lists(st.sampled_from([*tiny.CONTROLS, *tiny.TEXT_TOKENS, " ", "\n", "the light", "é漢😀", "<", ">", "|"]))


def template_of(family: str, **flags: bool) -> ChatTemplate:
    tokenizer = tiny.wrapped(family, **flags)
    return ChatTemplate(tokenizer, {tokenizer.eos_token_id})


@pytest.mark.parametrize(("family", "flags"), CASES)
@settings(max_examples=60, deadline=None)
@given(pieces=texts)
def test_no_text_of_a_person_or_a_tool_becomes_a_control_token(
    family: str, flags: dict[str, bool], pieces: list[str]
) -> None:
    tokenizer, template = _of(family, json.dumps(flags))
    controls = {tokenizer.convert_tokens_to_ids(token) for token in tiny.CONTROLS}
    text = "".join(pieces)
    bare = [i for i in template.first_turn("", "") if i in controls]
    assert [i for i in template.first_turn("", text) if i in controls] == bare
    glue = [i for i in template.next_turn(True, "") if i in controls]
    assert [i for i in template.next_turn(True, text) if i in controls] == glue
    two = (ChatMessage("user", "u"), ChatMessage("user", text))
    empty = (ChatMessage("user", "u"), ChatMessage("user", ""))
    expected = [i for i in template.first_turn("", empty) if i in controls]
    assert [i for i in template.first_turn("", two) if i in controls] == expected


_made: dict[tuple[str, str], tuple[object, ChatTemplate]] = {}


def _of(family: str, flags: str):  # type: ignore[no-untyped-def]
    if (family, flags) not in _made:
        tokenizer = tiny.wrapped(family, **json.loads(flags))
        _made[family, flags] = (tokenizer, ChatTemplate(tokenizer, {tokenizer.eos_token_id}))
    return _made[family, flags]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_what_is_no_control_token_has_the_ids_it_had(family: str) -> None:
    tokenizer = tiny.wrapped(family)
    backend = tokenizer.backend_tokenizer
    plain = hidden_tokens(backend, control_contents(backend, tiny.TEMPLATE)).tokenizer
    for text in ("The light    of õ the\nlighthouse, 漢字 😀 é", " a", "", "    ", "x < y > z | w"):
        expected = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        assert plain.encode(text, add_special_tokens=False).ids == expected
        assert plain.encode_batch_fast([text], add_special_tokens=False)[0].ids == expected


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_an_answer_keeps_its_thoughts_and_its_calls_but_ends_no_turn(family: str) -> None:
    tokenizer, template = tiny.wrapped(family), template_of(family)
    for token in (tiny.THINK, tiny.END_THINK, tiny.CALL, tiny.END_CALL):
        assert tokenizer.convert_tokens_to_ids(token) in template.answer(f"a{token}b")
    for token in (tiny.USER, tiny.ASSISTANT, tiny.END, tiny.BEGIN):
        assert tokenizer.convert_tokens_to_ids(token) not in template.answer(f"a{token}b")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_template_writes_its_own_tokens(family: str) -> None:
    tokenizer, template = tiny.wrapped(family), template_of(family)
    user, assistant, end = (tokenizer.convert_tokens_to_ids(t) for t in (tiny.USER, tiny.ASSISTANT, tiny.END))
    first, later = template.first_turn("", "the"), template.next_turn(False, "the")
    assert (first[0], first[-1]) == (user, assistant)
    assert [i for i in later if i in (user, assistant, end)] == [end, user, assistant]


def test_no_pieces_build_a_control_token() -> None:
    """Merges of a GGUF conversion build it from any two halves; none of them may be left."""
    tokenizer = tiny.wrapped("byte fallback")
    backend = tokenizer.backend_tokenizer
    plain = hidden_tokens(backend, control_contents(backend, tiny.TEMPLATE)).tokenizer
    ids = {tokenizer.convert_tokens_to_ids(token) for token in tiny.CONTROLS}
    for token, before, after in itertools.product(tiny.CONTROLS, ("", " ", "a"), ("", " ", "a")):
        assert not ids & set(plain.encode(f"{before}{token}{after}", add_special_tokens=False).ids)
