"""Numbers as a person reads them."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from app import units


@pytest.mark.parametrize(
    ("count_s", "text"),
    [
        (0.0, "0 s"),
        (0.004, "0 s"),
        (0.214, "0.21 s"),
        (0.994, "0.99 s"),
        (0.996, "1.0 s"),
        (4.06, "4.1 s"),
        (9.96, "10 s"),
        (14.2, "14 s"),
        (59.7, "1 min"),
        (120, "2 min"),
        (130, "2 min 10 s"),
        (7300, "2 h 1 min"),
        (7200, "2 h"),
    ],
)
def test_seconds(count_s: float, text: str) -> None:
    assert units.seconds(count_s) == text


@pytest.mark.parametrize(
    ("count_bytes", "text"),
    [
        (0, "0"),
        (2048, "2.0 KiB"),
        (81 * 1024**2, "81.0 MiB"),
        (999 * 1024**2, "999.0 MiB"),
        (1023 * 1024**2, "1.0 GiB"),
        (int(7.5 * 1024**3), "7.5 GiB"),
    ],
)
def test_sizes(count_bytes: int, text: str) -> None:
    assert units.size(count_bytes) == text


@pytest.mark.parametrize(("count", "text"), [(950, "950"), (1858, "1.9k"), (8192, "8.2k"), (131072, "131k")])
def test_short_tokens(count: int, text: str) -> None:
    assert units.tokens_short(count) == text


@pytest.mark.parametrize(
    ("number", "text"), [(1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (12, "12th"), (21, "21st")]
)
def test_ordinals(number: int, text: str) -> None:
    assert units.ordinal(number) == text


def test_days() -> None:
    now = time.mktime((2027, 3, 10, 0, 30, 0, 0, 0, -1))
    assert units.day(now - 60, now) == "Today"
    assert units.day(now - 3600, now) == "Yesterday"
    assert units.day(now - 5 * 86_400, now) == "Last 7 days"
    assert units.day(now - 30 * 86_400, now) == "February"
    assert units.day(now - 300 * 86_400, now) == "May 2026"


def test_days_are_the_readers() -> None:
    at = datetime(2026, 11, 29, 15, 57, tzinfo=UTC).timestamp()
    with units.in_zone("Asia/Tokyo"):
        assert units.day(at, at + 3600) == "Today"
        assert units.day(at - 3600, at) == "Yesterday"
    with units.in_zone("America/New_York"):
        assert units.day(at - 3600, at) == "Today"


@pytest.mark.parametrize("zone", ["", "Mars/Base", "../../etc/passwd", "/etc/passwd", "\0", "x" * 10_000, "\ud800"])
def test_an_unknown_zone_is_the_servers(zone: str) -> None:
    hours = [hour * 3600.0 for hour in range(24)]
    here = [units.day(0.0, hour) for hour in hours]
    with units.in_zone(zone):
        assert [units.day(0.0, hour) for hour in hours] == here


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
    assert units.parse_budget(text, whole_bytes=1000) == expected_bytes


@pytest.mark.parametrize("text", ["", "much", "-1", "0", "0%", "101%", "4 parsecs", "1e9", "4GiB extra", "NaN", "0.2"])
def test_refuses_what_is_no_size_with_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"\.$"):
        units.parse_budget(text, whole_bytes=1000)
