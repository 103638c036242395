"""The count of values and the depth, compared with the parsed value."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.http import json_shape
from app.http.json_shape import Shape, ShapeRefused, check_shape, load_json

WIDE = Shape(10**9, 10**6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=40,
)


def counted(value: Any) -> int:
    """Opening brackets and commas."""
    if not isinstance(value, list | dict):
        return 0
    inner = list(value.values()) if isinstance(value, dict) else value
    return 1 + max(0, len(inner) - 1) + sum(map(counted, inner))


def depth(value: Any) -> int:
    if not isinstance(value, list | dict):
        return 0
    return 1 + max(map(depth, value.values() if isinstance(value, dict) else value), default=0)


def is_taken(text: bytes, most: Shape) -> bool:
    try:
        check_shape(text, most)
    except ShapeRefused:
        return False
    return True


@given(VALUES, st.booleans(), st.sampled_from([None, 1]), st.integers(2, 70))
def test_it_counts_what_the_parser_would_build(value: Any, is_ascii: bool, indent: int | None, window: int) -> None:
    """With windows small enough that strings, escapes and numbers cross their ends."""
    text = json.dumps(value, ensure_ascii=is_ascii, indent=indent).encode("utf-8", "replace")
    before, json_shape.WINDOW_BYTES = json_shape.WINDOW_BYTES, window
    try:
        values, levels = counted(value), depth(value)
        assert is_taken(text, Shape(values, levels))
        assert values == 0 or not is_taken(text, Shape(values - 1, levels))
        assert levels == 0 or not is_taken(text, Shape(values, levels - 1))
        assert load_json(text, WIDE) == json.loads(text)
    finally:
        json_shape.WINDOW_BYTES = before


@given(st.binary(max_size=200), st.integers(2, 9))
def test_bytes_that_are_no_json_are_refused_or_read(text: bytes, window: int) -> None:
    before, json_shape.WINDOW_BYTES = json_shape.WINDOW_BYTES, window
    try:
        load_json(text, Shape(50, 10))
    except ShapeRefused:
        pass
    finally:
        json_shape.WINDOW_BYTES = before


@pytest.mark.parametrize(
    "text",
    [b"NaN", b"[Infinity]", b'{"a": -Infinity}', b"1" * 401, b"[" + b"1" * 5000 + b"]", b"[" * 5000, b"\xff", b"'a'"],
)
def test_what_python_would_take_and_others_would_not(text: bytes) -> None:
    with pytest.raises(ShapeRefused):
        load_json(text, Shape(10_000, 1_000))


def test_a_mark_before_the_text_is_no_error() -> None:
    assert load_json(b"\xef\xbb\xbf[1]", WIDE) == [1]


def test_windows_end_anywhere() -> None:
    chance = random.Random(7)
    pieces = ['"', "\\", "\\\\", '\\"', "x", "é", "{", "}", "[", "]", ",", "1"]
    for _ in range(2000):
        said = "".join(chance.choice(pieces) for _ in range(chance.randrange(60)))
        text = json.dumps([said, {said: [1, said]}]).encode()
        assert is_taken(text, Shape(5, 3))
        assert not is_taken(text, Shape(4, 3))
