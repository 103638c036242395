"""Sizes on the command line."""

from __future__ import annotations

from pathlib import Path

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


def test_free_memory_is_the_machines_or_its_containers(tmp_path: Path) -> None:
    whole = sizes.free_memory_bytes(tmp_path)
    assert whole > 1024**2
    (tmp_path / "memory.current").write_text("300\n", encoding="ascii")
    (tmp_path / "memory.max").write_text("max\n", encoding="ascii")
    assert sizes.free_memory_bytes(tmp_path) > 1024**2
    (tmp_path / "memory.max").write_text("1000\n", encoding="ascii")
    assert sizes.free_memory_bytes(tmp_path) == 700
