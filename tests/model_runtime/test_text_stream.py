"""Streamed text is never broken and never runs past a stop string."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from model_runtime.text_stream import TextStream
from tests.model_runtime.tiny_models import END_TOKEN, tiny_tokenizer

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
