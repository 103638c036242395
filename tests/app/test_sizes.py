"""Sizes on the command line."""

from __future__ import annotations

import pytest

from app import sizes


@pytest.mark.parametrize(
    ("text", "expected_bytes"),
    [
        ("1048576", 1024**2),
        ("4GiB", 4 * 1024**3),
        ("4 gib", 4 * 1024**3),
        ("1.5G", 3 * 1024**3 // 2),
        ("2GB", 2 * 10**9),
        ("512MiB", 512 * 1024**2),
        ("80%", 800),
        ("100 %", 1000),
    ],
)
def test_reads_bytes_units_and_shares(text: str, expected_bytes: int) -> None:
    assert sizes.parse_budget(text, whole_bytes=1000) == expected_bytes


@pytest.mark.parametrize("text", ["", "much", "-1", "0", "0%", "101%", "4 parsecs", "1e9", "4GiB extra", "NaN", "0.2"])
def test_refuses_what_is_no_size_with_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"\.$"):
        sizes.parse_budget(text, whole_bytes=1000)


def test_this_machine_has_free_memory() -> None:
    assert sizes.free_memory_bytes() > 1024**2
