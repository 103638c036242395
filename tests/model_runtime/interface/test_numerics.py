"""What was changed between two starts is told from two lines, and only where it can be told."""

from __future__ import annotations

import pytest

from model_runtime.interface.numerics import activations, cold_precision, difference, kv_precision, line, with_part

BEFORE = {"weights": "a1", "rope": "b1", "quantization": "int4", "dtype": "bfloat16", "kernel": "own; k=1"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, ""),
        ({"weights": "a2"}, "the model's weights were changed"),
        ({"weights": "a2", "rope": "b2", "quantization": "nf4"}, "the model's weights were changed"),
        ({"rope": "b2"}, "the model's position settings were changed"),
        ({"quantization": "nf4"}, "the quantization was changed from int4 to nf4"),
        ({"kernel": "own; k=2"}, "the kernels that compute it were changed"),
        (
            {"quantization": "none", "dtype": "float32"},
            (
                "the quantization was changed from int4 to none and "
                "the precision of the computation was changed from bfloat16 to float32"
            ),
        ),
    ],
)
def test_what_was_changed_is_named(changed: dict[str, str], said: str) -> None:
    assert difference(line(**BEFORE), line(**BEFORE | changed)) == said


def test_saved_at_8_bits_is_a_change_in_both_directions_and_an_owner_is_none() -> None:
    exact = line(**BEFORE)
    int8 = with_part(exact, "cold", "int8")
    assert (cold_precision(exact), cold_precision(with_part(int8, "owner", "x"))) == ("exact", "int8")
    assert difference(exact, int8) == "the precision of saved memory was changed from exact to int8"
    assert difference(int8, exact) == "the precision of saved memory was changed from int8 to exact"
    assert difference(with_part(exact, "owner", "x"), with_part(exact, "owner", "y")) == ""


def test_rounded_keys_and_values_are_a_change_both_ways() -> None:
    exact = line(**BEFORE)
    half = with_part(exact, "kv", "float16")
    assert (kv_precision(exact), kv_precision(with_part(half, "cold", "int8"))) == ("bfloat16", "float16")
    assert kv_precision("0123456789abcdef") == ""
    assert difference(exact, half) == "the precision of keys and values was changed from exact to float16"
    assert difference(half, exact) == "the precision of keys and values was changed from float16 to exact"


def test_a_line_of_an_earlier_version_says_nothing() -> None:
    assert difference("0123456789abcdef", line(**BEFORE)) == difference("", line(**BEFORE)) == ""


def test_activations_that_become_bytes_are_a_change_both_ways_and_a_line_without_them_had_float32() -> None:
    exact = line(**BEFORE)
    rounded = with_part(exact, "activations", "int8")
    assert (activations(exact), activations(with_part(rounded, "cold", "int8"))) == ("float32", "int8")
    assert difference(exact, rounded) == "the precision of activations was changed from float32 to int8"
    assert difference(rounded, exact) == "the precision of activations was changed from int8 to float32"
