"""Emphasis beside Chinese, Japanese and Korean text.

CommonMark lets `**` open or close only beside a space or punctuation when punctuation stands inside it. These scripts
put no spaces between words: `**重要。**次` would keep its asterisks. The rule here is the one that was proposed for
CommonMark as "CJK-friendly emphasis": a character of these scripts counts like a space on the outside, and their
punctuation like a letter. For all other text nothing changes.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.common.utils import isMdAsciiPunct, isPunctChar, isWhiteSpace
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.state_inline import Scanned
from markdown_it.token import Token

# Hangul, kana, ideographs and their punctuation, full-width forms, and the planes of rarer ideographs.
_CJK = re.compile(
    "[\u1100-\u11ff\u2e80-\ua4cf\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\U00020000-\U0003ffff]"
)


class InlineState(StateInline):
    """The library's state with another rule for what a run of `*`, `_` or `~` may do."""

    def scanDelims(self, start: int, canSplitWord: bool) -> Scanned:
        """Whether the run that begins at `start` can open and close emphasis, and its length."""
        end = start
        while end < self.posMax and self.src[end] == self.src[start]:
            end += 1
        before = self.src[start - 1] if start > 0 else " "
        after = self.src[end] if end < self.posMax else " "
        opens = _may_begin(after, before)
        closes = _may_begin(before, after)
        can_open = opens and (canSplitWord or not closes or _is_punctuation(before))
        can_close = closes and (canSplitWord or not opens or _is_punctuation(after))
        return Scanned(can_open, can_close, end - start)


def parse(text: str, parser: MarkdownIt, env: MutableMapping[str, Any]) -> list[Token]:
    """The tokens of one paragraph, heading or cell, like `parser.inline.parse`."""
    state = InlineState(text, parser, env, [])
    parser.inline.tokenize(state)
    for rule in parser.inline.ruler2.getRules(""):
        rule(state)
    return state.tokens


def _may_begin(inside: str, outside: str) -> bool:
    """Whether emphasis may begin (or, seen from its end, end) between these two characters."""
    if isWhiteSpace(ord(inside)):
        return False
    if not _is_punctuation(inside) or _CJK.match(inside):
        return True
    return isWhiteSpace(ord(outside)) or _is_punctuation(outside) or _CJK.match(outside) is not None


def _is_punctuation(sign: str) -> bool:
    return isMdAsciiPunct(ord(sign)) or isPunctChar(sign)
