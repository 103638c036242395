"""Highlights code in time proportional to its length.

Pygments knows more languages in more detail, but its expressions take quadratic time and worse for text that is not a
program (C: 1 s for 4,000 empty lines), and Python cannot interrupt an expression while all requests wait. These
expressions see comments, strings, numbers, words and calls, and look at each character once.
"""

from __future__ import annotations

import logging
import re
from functools import cache

from app.page.markdown.effort import Steps, TooCostly
from app.page.markdown.languages import Language, language_of
from app.page.markdown.nodes import Child, Node

LONGEST_CHARACTERS = 60_000
log = logging.getLogger(__name__)


def highlighted(text: str, language: str, steps: Steps) -> tuple[Child, ...]:
    """The code as text and "token" nodes; plain text for an unknown language. Each token takes one step. Raises
    `TooCostly`."""
    plain = (text,) if text else ()
    known = language_of(language)
    if known is None or len(text) > LONGEST_CHARACTERS:
        return plain
    try:
        return _coloured(text, known, steps)
    except TooCostly:
        raise
    except Exception:  # code without colours is still useful; an answer without its code is not
        log.exception("code is shown without colours language=%s", known.names[0])
        return plain


def _coloured(text: str, known: Language, steps: Steps) -> tuple[Child, ...]:
    pieces: list[Child] = []
    plain_from = 0
    for found in _expression(known).finditer(text):
        steps.spend(1)
        kind = _kind(found, text, known)
        if kind is None:
            continue
        if plain_from < found.start():
            pieces.append(text[plain_from : found.start()])
        pieces.append(Node("token", (found[0],), (("class", kind),)))
        plain_from = found.end()
    if plain_from < len(text):
        pieces.append(text[plain_from:])
    return tuple(pieces)


def _kind(found: re.Match[str], text: str, language: Language) -> str | None:
    kind = (found.lastgroup or "").partition("_")[0]
    if kind != "word":
        return kind
    word = found[0]
    if (word.lower() if language.ignores_case else word) in language.keywords:
        return "keyword"
    if text.startswith("(", found.end()):
        return "function"
    return "class-name" if word[0].isupper() and not word.isupper() else None


@cache
def _expression(language: Language) -> re.Pattern[str]:
    """One expression whose alternatives never backtrack: every repetition is possessive."""
    alternatives: list[str] = []
    for begin, end in language.block_comments:
        alternatives.append(f"(?P<comment_{len(alternatives)}>{re.escape(begin)}(?s:.*?)(?:{re.escape(end)}|\\Z))")
    for begin in language.line_comments:
        alternatives.append(f"(?P<comment_{len(alternatives)}>{begin}[^\\n]*+)")
    for quote in language.long_quotes:
        sign = re.escape(quote)
        alternatives.append(f"(?P<string_{len(alternatives)}>{sign}(?s:.*?)(?:{sign}|\\Z))")
    for quote in language.quotes:
        inside = "" if quote == "`" else "\\n"
        alternatives.append(f"(?P<string_{len(alternatives)}>{quote}(?:[^{quote}\\\\{inside}]|\\\\.)*+{quote}?)")
    alternatives.append(r"(?P<number>\b\d[\w.]*+)")
    alternatives.append(rf"(?P<word>[{language.word_begins}][\w{re.escape(language.word_holds)}]*+)")
    return re.compile("|".join(alternatives))
