"""Draws finished and growing answers as lists of blocks, each as JSON.

A block that did not change is not parsed, sent or drawn again. No construct spans an empty line between two outermost
blocks (`math_marks` keeps to that), so everything before the last such line is final, unless the text defines
references or footnotes, which may turn an earlier `[word]` into a link.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import blake2b

from app.page.markdown.nodes import Node, to_json
from app.page.markdown.parser import AnswerParser
from app.page.markdown.rules import footnotes
from app.page.markdown.tree import Block, Tree

LONGEST_CHARACTERS = 200_000  # a longer text is shown as plain text
KEPT_CHARACTERS = 2_000_000
KEPT_GROWING = 32
LONGEST_SHARE = 0.25  # of one core that drawing a growing answer may take
_CHEAP_S = 0.01
_SURROGATE = re.compile("[\ud800-\udfff]")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DrawnBlock:
    """A block as JSON, and a key that is equal only for equal JSON."""

    key: str
    json: str


class Answers:
    """Draws answers and caches the most recent drawings. Any thread."""

    def __init__(self) -> None:
        self._parser = AnswerParser()
        self._lock = threading.Lock()
        self._whole: OrderedDict[str, tuple[DrawnBlock, ...]] = OrderedDict()
        self._kept_characters = 0
        self._growing: OrderedDict[str, GrowingAnswer] = OrderedDict()

    def whole(self, text: str) -> tuple[DrawnBlock, ...]:
        """The blocks of a finished text."""
        with self._lock:
            if text in self._whole:
                self._whole.move_to_end(text)
                return self._whole[text]
        blocks = GrowingAnswer(self._parser).draw(text)
        with self._lock:
            if text not in self._whole:
                self._whole[text] = blocks
                self._kept_characters += len(text)
            while self._kept_characters > KEPT_CHARACTERS:
                self._kept_characters -= len(self._whole.popitem(last=False)[0])
        return blocks

    def growing(self, name: str, text: str) -> tuple[DrawnBlock, ...]:
        """The blocks of the growing answer `name`. If it is costly to draw, they may be a moment old."""
        with self._lock:
            answer = self._growing.setdefault(name, GrowingAnswer(self._parser))
            self._growing.move_to_end(name)
            while len(self._growing) > KEPT_GROWING:
                self._growing.popitem(last=False)
        return answer.draw_when_due(text)


class GrowingAnswer:
    """One answer whose text mostly grows at its end. Any thread; calls wait for each other."""

    def __init__(self, parser: AnswerParser) -> None:
        self._parser = parser
        self._lock = threading.Lock()
        self._tree = Tree(parser)
        self._done_text = ""
        self._done: list[DrawnBlock] = []
        self._drawn: tuple[DrawnBlock, ...] = ()
        self._drawn_text = ""
        self._due_s = 0.0

    def draw_when_due(self, text: str) -> tuple[DrawnBlock, ...]:
        """Like `draw`, but limited to `LONGEST_SHARE` of one core: after a slow drawing it returns the last one for a
        while."""
        with self._lock:
            if time.monotonic() < self._due_s and text.startswith(self._drawn_text):
                return self._drawn
            began = time.monotonic()
            drawn = self._draw(text)
            took_s = time.monotonic() - began
            self._due_s = began + took_s / LONGEST_SHARE if took_s > _CHEAP_S else 0.0
            return drawn

    def draw(self, text: str) -> tuple[DrawnBlock, ...]:
        """The blocks of the text as it is now."""
        with self._lock:
            return self._draw(text)

    def _draw(self, text: str) -> tuple[DrawnBlock, ...]:
        try:
            self._drawn = tuple(self._blocks(_mended(text)))
        except Exception:  # a bug of ours or the parser's: the person still sees every word
            log.exception("an answer is shown as plain text characters=%d", len(text))
            self._restart()
            self._drawn = (_drawn(_plain(_mended(text))),)
        self._drawn_text = text
        return self._drawn

    def _blocks(self, text: str) -> list[DrawnBlock]:
        if len(text) > LONGEST_CHARACTERS:
            return [_drawn(_plain(text))]
        if not text.startswith(self._done_text):
            self._restart()
        rest = text[len(self._done_text) :]
        tokens, env = self._parser.blocks(rest)
        if env.get("references") or footnotes.are_in(env):
            if self._done_text:
                tokens, env = self._parser.blocks(text)
            self._restart()  # a reference that grows may stop being one: none of this is kept
            return [_drawn(block.node) for block in Tree(self._parser).blocks(tokens, env)]
        blocks = self._tree.blocks(tokens, env)
        drawn = [_drawn(block.node) for block in blocks]
        before = self._done
        self._finish(rest, blocks, drawn)
        return before + drawn

    def _finish(self, rest: str, blocks: list[Block], drawn: list[DrawnBlock]) -> None:
        """Stores the blocks that no following text can change."""
        lines = rest.split("\n")
        for number in range(len(blocks) - 1, 0, -1):
            line = blocks[number].first_line
            if line + 1 < len(lines) and not lines[line - 1].strip(" \t"):
                self._done_text += "\n".join(lines[:line]) + "\n"
                self._done = self._done + drawn[:number]
                return

    def _restart(self) -> None:
        self._tree = Tree(self._parser)
        self._done_text = ""
        self._done = []


def _drawn(node: Node) -> DrawnBlock:
    text = to_json(node)
    return DrawnBlock(blake2b(text.encode(), digest_size=8).hexdigest(), text)


def _plain(text: str) -> Node:
    return Node("code_block", (text,))


def _mended(text: str) -> str:
    """The text with uniform line ends, and with U+FFFD for half a surrogate pair, which JSON cannot carry."""
    return _SURROGATE.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))
