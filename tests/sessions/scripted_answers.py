"""What the scripted engine says: pure functions of what its KV holds."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from tests.sessions.byte_template import END, USER


def checksum(ledger: Sequence[int]) -> str:
    """Eight characters that depend on every id and its position."""
    return f"{zlib.crc32(b''.join(i.to_bytes(4, 'little') for i in ledger)):08x}"


def checksum_answer(ledger: tuple[int, ...]) -> tuple[int, ...]:
    """The ledger's checksum and its length, then up to seven words, then the stop token."""
    mark = checksum(ledger)
    text = f"{mark} {len(ledger)}" + " é→word" * (int(mark, 16) % 8)
    return (*text.encode(), END)


def chat_answer(ledger: tuple[int, ...]) -> tuple[int, ...]:
    """A longer Markdown answer, for looking at the page by hand."""
    last_user = max(i for i, token in enumerate(ledger) if token == USER)
    asked = bytes(i for i in ledger[last_user + 1 :] if i < 256).decode("utf-8", errors="replace")
    text = (
        f"You asked **{asked[:60].strip()}**. I have read {len(ledger):,} tokens of this conversation.\n\n"
        f"- checksum `{checksum(ledger)}`\n- café, naïve, 日本語\n\n"
        "```python\ndef warm(cache):\n    return cache.length_tokens\n```\n\nAnything else?"
    )
    return (*text.encode(), END)


def text_of(token_ids: Sequence[int]) -> str:
    return bytes(i for i in token_ids if i < 256).decode("utf-8", errors="replace")
