"""Streamed text is never broken and never runs past a stop string."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_runtime.text.text_stream import TextStream
from tests.model_runtime import tiny_tokenizers
from tests.model_runtime.tiny_chats import KINDS, chat_tokenizer
from tests.model_runtime.tiny_models import END_TOKEN, PROSE_PATH, tiny_tokenizer

TOKENIZER = tiny_tokenizer().backend_tokenizer


def ids_of(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False).ids)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=80))
def test_pieces_are_whole_characters_and_add_up(text: str) -> None:
    stream = TextStream(TOKENIZER, ())
    pieces = [stream.push(i) for i in ids_of(text)]
    assert "".join(pieces) + stream.tail() == TOKENIZER.decode(ids_of(text))
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@given(st.text(alphabet="ab ", max_size=30), st.text(alphabet="ab ", min_size=1, max_size=4))
def test_everything_before_the_stop_string_and_nothing_after_it(text: str, stop: str) -> None:
    stream = TextStream(TOKENIZER, (stop,))
    shown = ""
    for token_id in ids_of(text):
        shown += stream.push(token_id)
        assert stop not in shown
        if stream.stopped:
            break
    assert stream.stopped == (stop in text)
    assert shown + stream.tail() == text.split(stop)[0]


def test_a_stop_token_shows_nothing_and_half_a_character_waits() -> None:
    stream = TextStream(TOKENIZER, ())
    assert stream.push(ids_of(END_TOKEN)[0]) == ""
    first, *rest = ids_of("€")
    assert stream.push(first) == ""
    assert "".join(stream.push(i) for i in rest) == "€"


def test_a_continued_answer_begins_where_the_first_part_ended() -> None:
    ids = ids_of("naïve €5")
    for cut in range(len(ids)):
        before, after = TextStream(TOKENIZER, ()), TextStream(TOKENIZER, (), ids[:cut])
        shown = "".join(before.push(i) for i in ids[:cut])
        assert shown + "".join(after.push(i) for i in ids[cut:]) == "naïve €5"


FALLBACK = tiny_tokenizers.byte_fallback()
FALLBACK_IDS = st.lists(st.integers(0, FALLBACK.get_vocab_size() - 1), max_size=60)
BYTE_IDS = st.lists(st.integers(3, 258) | st.integers(259, FALLBACK.get_vocab_size() - 1), max_size=40)


@given(FALLBACK_IDS | BYTE_IDS)
def test_no_sequence_of_byte_fallback_ids_ends_an_answer(ids: list[int]) -> None:
    """`DecodeStream` raises "Invalid prefix" for one in ten of these."""
    stream = TextStream(FALLBACK, ())
    shown = "".join(stream.push(token_id) for token_id in ids) + stream.tail()
    whole = FALLBACK.decode(ids, skip_special_tokens=True)
    if "\ufffd" not in whole:
        assert shown == whole
    letters = [token for token in map(FALLBACK.id_to_token, ids) if not token.startswith("<0x")]
    assert all(letter in shown for letter in letters if letter.isascii() and letter.isalpha())


@given(FALLBACK_IDS, st.integers(0, 60))
def test_an_answer_that_is_continued_never_fails(ids: list[int], cut: int) -> None:
    stream = TextStream(FALLBACK, (), ids[:cut])
    for token_id in ids[cut:]:
        stream.push(token_id)


def test_bytes_that_never_become_a_character_do_not_hold_the_text_back() -> None:
    stream = TextStream(FALLBACK, ())
    bad = FALLBACK.token_to_id("<0xFF>")
    shown = [stream.push(bad) for _ in range(100)]
    assert max(len(piece) for piece in shown) <= 16
    assert set("".join(shown)) == {"\ufffd"}
    assert stream.push(FALLBACK.token_to_id("▁light")).endswith(" light")


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
def test_byte_fallback_text_streams_as_it_is(text: str) -> None:
    ids = FALLBACK.encode(text, add_special_tokens=False).ids
    stream = TextStream(FALLBACK, ())
    shown = "".join(stream.push(token_id) for token_id in ids) + stream.tail()
    whole = FALLBACK.decode(ids, skip_special_tokens=True)
    if not whole.endswith("\ufffd"):
        assert shown == whole


@pytest.mark.parametrize("kind", KINDS)
def test_three_thousand_random_answers_go_on_and_lose_no_letter(kind: str) -> None:
    """250 of each kind. A stream equals the full decode where that has no mark for undecodable bytes. Elsewhere the
    full decode turns a whole run of bytes into marks, and the stream has shown the characters in it by then; and the
    last, incomplete character is not shown."""
    tokenizer, draw = chat_tokenizer(kind, "deepseek").backend_tokenizer, random.Random(kind)
    any_id = range(tokenizer.get_vocab_size())
    byte_ids = [i for i in any_id if str(tokenizer.id_to_token(i)).startswith("<0x")] or range(256)
    prose = PROSE_PATH.read_text(encoding="utf-8") + "日本語 👩\u200d🚀 e\u0301"
    for number in range(250):
        odd_share = (0.0, 0.1, 0.5, 0.9)[number % 4]
        start = draw.randrange(len(prose))
        ids = tokenizer.encode(prose[start : start + 60] + prose[-12:], add_special_tokens=False).ids
        ids = [draw.choice(draw.choice((any_id, byte_ids))) if draw.random() < odd_share else i for i in ids]
        stream = TextStream(tokenizer, ())
        shown = "".join(map(stream.push, ids)) + stream.tail()
        whole = tokenizer.decode(ids, skip_special_tokens=True)
        if "\ufffd" not in whole:
            assert shown == whole
        letters = iter(shown)
        assert all(letter in letters for letter in whole if letter != "\ufffd"), (shown, whole)
