"""Numbers as people read and write them: bytes as MiB or "4GiB", times as 0.21 s, tokens with separators."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo

from sessions.types import Tier

KIB, MIB, GIB = 1024, 1024**2, 1024**3
TIER_MARK = {Tier.DEVICE: "●", Tier.HOST: "◉", Tier.DISK: "○", Tier.ENGINE: "◇", Tier.NONE: "◌"}
TierWords = Mapping[Tier, str]
# What the page calls the tiers. A model on a processor has its KVs in the same memory as everything else.
CPU_WORDS: TierWords = {
    Tier.DEVICE: "in memory",
    Tier.HOST: "set aside in memory",
    Tier.DISK: "on disk",
    Tier.ENGINE: "in the engine",
    Tier.NONE: "not kept",
}
GPU_WORDS: TierWords = {**CPU_WORDS, Tier.DEVICE: "in GPU memory", Tier.HOST: "in main memory"}
UNIT_BYTES = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "tb": 1000**4,
    "k": 1024,
    "m": 1024**2,
    "g": 1024**3,
    "t": 1024**4,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
    "tib": 1024**4,
}
_READERS_ZONE: ContextVar[tzinfo | None] = ContextVar("readers_zone", default=None)
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*|%)\s*", re.IGNORECASE)


def tier_words(device: str) -> TierWords:
    """Plain words for the tiers of a model that runs on `device`, such as "cpu" or "cuda"."""
    return CPU_WORDS if device.startswith("cpu") else GPU_WORDS


def tokens(count: int) -> str:
    """1812 -> "1,812"."""
    return f"{count:,}"


def tokens_short(count: int) -> str:
    """950 -> "950", 1858 -> "1.9k", 8192 -> "8.2k", 131072 -> "131k"."""
    if count < 1000:
        return str(count)
    if count < 99_950:
        return f"{count / 1000:.1f}k"
    return f"{count / 1000:,.0f}k"


def size(count_bytes: int) -> str:
    """Bytes as KiB, MiB or GiB with one decimal."""
    if count_bytes <= 0:
        return "0"
    if count_bytes < 0.1 * MIB:
        return f"{count_bytes / KIB:.1f} KiB"
    if count_bytes < 999.95 * MIB:
        return f"{count_bytes / MIB:.1f} MiB"
    return f"{count_bytes / GIB:.1f} GiB"


def seconds(count_s: float) -> str:
    """0.214 -> "0.21 s", 14.2 -> "14 s", 130 -> "2 min 10 s", 7300 -> "2 h 2 min"."""
    if count_s < 0.005:
        return "0 s"
    if count_s < 9.95:
        return f"{count_s:.2f} s" if count_s < 0.995 else f"{count_s:.1f} s"
    whole = round(count_s)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        minutes, rest = divmod(whole, 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, rest = divmod(whole, 3600)
    minutes = rest // 60
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def ordinal(number: int) -> str:
    """1 -> "1st"."""
    if number % 100 in (11, 12, 13):
        return f"{number}th"
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


@contextlib.contextmanager
def in_zone(name: str) -> Iterator[None]:
    """Inside, days begin at midnight in this time zone, which the reader's browser names ("Asia/Tokyo"); in the
    server's own if the name is unknown."""
    token = _READERS_ZONE.set(_zone(name))
    try:
        yield
    finally:
        _READERS_ZONE.reset(token)


def day(at: float, now: float) -> str:
    """The heading for a moment: Today, Yesterday, Last 7 days, or a month."""
    then, today = _local(at), _local(now)
    days = today.toordinal() - then.toordinal()
    if days <= 0:
        return "Today"
    if days == 1:
        return "Yesterday"
    if days <= 7:
        return "Last 7 days"
    return then.strftime("%B" if then.year == today.year else "%B %Y")


def parse_budget(text: str, whole_bytes: int) -> int:
    """The bytes that `text` means; a percentage is a share of `whole_bytes`. Raises `ValueError` with a sentence."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"A size looks like 2000000000, 4GiB or 80%, not {text!r}.")
    number, unit = float(match[1]), match[2].lower()
    if unit == "%":
        if not 0 < number <= 100:
            raise ValueError(f"A share of the memory must be above 0% and at most 100%, not {text.strip()}.")
        return int(whole_bytes * number / 100)
    if unit not in UNIT_BYTES:
        raise ValueError(f"Unknown unit in {text!r}: use MiB, GiB, MB, GB, or % of the free memory.")
    budget_bytes = int(number * UNIT_BYTES[unit])
    if budget_bytes <= 0:
        raise ValueError(f"The KV budget must be larger than 0, not {text.strip()}.")
    return budget_bytes


def _local(at: float) -> datetime:
    return datetime.fromtimestamp(at, _READERS_ZONE.get())


@lru_cache(maxsize=64)
def _zone(name: str) -> tzinfo | None:
    try:
        return ZoneInfo(name) if 0 < len(name) <= 60 else None
    except (ValueError, OSError, KeyError):  # no such zone, or nothing that could be one
        return None
