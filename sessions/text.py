"""Cleans text from people, once, on entry; and formats numbers for sentences."""

from __future__ import annotations

import re
import unicodedata

from sessions.config import MIB
from sessions.errors import MessageRefused

TITLE_LIMIT_CHARS = 120
FIRST_TITLE_CHARS = 40
UNTITLED = "New conversation"

_SURROGATES = re.compile("[\ud800-\udfff]")


def clean(text: str) -> str:
    """Removes NULs, replaces lone surrogates by U+FFFD, and makes every line end "\\n". Nothing else changes."""
    return _SURROGATES.sub("�", text.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n"))


def clean_exactly(text: str) -> str:
    """Changes only what cannot be stored: removes NULs, and replaces lone surrogates by U+FFFD. Line ends stay."""
    return _SURROGATES.sub("�", text.replace("\0", ""))


def clean_message(text: str, max_bytes: int) -> str:
    """A message ready to be stored. Raises `MessageRefused` if it is empty or longer than `max_bytes`."""
    if not isinstance(text, str):
        raise MessageRefused("A message must be text.")
    text = clean(text)
    if not text.strip():
        raise MessageRefused("Write a message first.")
    refuse_if_huge(text, max_bytes)
    return text


def refuse_if_huge(text: str, max_bytes: int, what: str = "This message") -> None:
    """Raises `MessageRefused` for a text longer than `max_bytes`. To be called before tokenising, which would take
    seconds."""
    size_bytes = len(text.encode("utf-8", errors="replace"))
    if size_bytes > max_bytes:
        raise MessageRefused(
            f"{what} is {size_bytes / MIB:.1f} MiB long; at most {max_bytes / MIB:.1f} MiB are accepted. "
            "Shorten it or send it in parts."
        )


def clean_title(title: str) -> str:
    """One line of at most 120 characters without control characters; "" if nothing is left."""
    visible = "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in clean(title[:10_000]))
    return " ".join(visible.split())[:TITLE_LIMIT_CHARS].rstrip()


def first_title(message: str) -> str:
    """The first line of a conversation's first message, about 40 characters, cut at a word."""
    lines = message.lstrip()[:10_000].splitlines()  # no more of a long message is ever shown
    title = clean_title(lines[0] if lines else "")
    if len(title) <= FIRST_TITLE_CHARS:
        return title
    head = title[:FIRST_TITLE_CHARS]
    cut = head.rfind(" ")
    return (head[:cut] if cut > FIRST_TITLE_CHARS // 2 else head).rstrip(" ,;:.-") + "…"


def mib(size_bytes: int) -> str:
    """A size for a sentence: "84.0 MiB", "1.2 GiB"."""
    if size_bytes >= 1024 * MIB:
        return f"{size_bytes / MIB / 1024:.1f} GiB"
    return f"{size_bytes / MIB:.1f} MiB"


def tokens(count: int) -> str:
    """A number of tokens for a sentence: "1 token", "5,020 tokens"."""
    return f"{count:,} token{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """A time of at least an hour for a sentence: "40 days", "3 hours"."""
    count, unit = (seconds / 86_400, "day") if seconds >= 86_400 else (seconds / 3600, "hour")
    return f"{count:,.0f} {unit}{'' if round(count) == 1 else 's'}"
