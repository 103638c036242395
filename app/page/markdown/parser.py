"""Parses CommonMark with GitHub's tables, task lists, ~~struck~~ text, addresses and footnotes, and mathematics. Never
HTML; only in a table's cell, which has no other way to begin a line, `<br>` is a line break.

markdown-it-py limits the depth but drops what lies deeper, lets two kilobytes become 65,000 table cells, and finds
links in text in quadratic time. The rules here set limits beyond which text stays plain text instead: of depth, and of
the steps that one drawing may take (`effort`).
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.ruler import RuleOptionsType
from markdown_it.rules_block import StateBlock, table
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from app.page.markdown import effort
from app.page.markdown.rules import addresses, flanking, footnotes, math_marks

SAFE_LINK = re.compile(r"(https?://[^/?#\s]|mailto:[^\s])", re.IGNORECASE)
DEEPEST_BLOCK = 24
DEEPEST = 40  # of the parser's own levels: a list takes two
DEEPEST_BRACKETS = 10  # parsing time grows with length times this
MOST_EMPTY_CELLS = 5_000
Env = MutableMapping[str, Any]
_CELL_END = re.compile(r"(?<!\\)\|")
_MARKERS = re.compile(r"[*_~]++")
_BREAK = re.compile(r"<br[ \t]*/?>", re.IGNORECASE)
IN_CELL = "in_cell"  # set in the environment while a cell's text is parsed


class AnswerParser:
    """Parses blocks separately from the text inside them, so that an unchanged paragraph is not parsed again."""

    def __init__(self) -> None:
        self._blocks = _Parser(DEEPEST)
        self._blocks.core.ruler.at("block", _blocks_within_effort)
        self._blocks.core.ruler.enableOnly(["normalize", "block"])
        self._inline = _Parser(DEEPEST_BRACKETS)

    def blocks(self, text: str) -> tuple[list[Token], Env]:
        """The blocks of a text, and the references it defines, which may apply to any other block. What is too costly
        is one block of code at the end."""
        env = effort.new_env()
        return self._blocks.parse(text, env), env

    def inline_tokens(self, text: str, env: Env) -> list[Token]:
        """The tokens of the text of one paragraph, heading or cell. Raises `TooCostly`."""
        return flanking.parse(text, self._inline, env)


class _Parser(MarkdownIt):
    def __init__(self, deepest: int) -> None:
        super().__init__("commonmark", {"html": False, "tasklists": True, "maxNesting": deepest})
        self.enable(["table", "strikethrough"])
        self.disable(["html_block", "html_inline"])
        everywhere: RuleOptionsType = {"alt": ["paragraph", "reference", "blockquote", "list", "table"]}
        self.block.ruler.before("table", "count_block_steps", _count_block_steps, everywhere)
        self.block.ruler.before("table", "too_deep", _too_deep)
        self.block.ruler.at("table", _table_of_bearable_size, {"alt": ["paragraph", "reference"]})
        self.inline.ruler.before("text", "count_inside_steps", _count_inside_steps)
        self.inline.ruler.before("autolink", "break_in_cell", _break_in_cell)
        addresses.add_to(self)
        footnotes.add_to(self)
        math_marks.add_to(self)

    def validateLink(self, url: str) -> bool:
        """Allows only addresses that a browser may safely open; any other link stays plain text."""
        return SAFE_LINK.match(url) is not None


def _blocks_within_effort(state: StateCore) -> None:
    """Parses blocks. When that becomes too costly, the outermost block that was begun and all after it become code."""
    try:
        state.md.block.parse(state.src, state.md, state.env, state.tokens)
    except effort.TooCostly:
        _make_rest_plain(state)


def _make_rest_plain(state: StateCore) -> None:
    whole, line = 0, 0
    begins = None
    for number, token in enumerate(state.tokens):
        if token.level == 0 and token.nesting >= 0:
            begins = token.map
        if token.level == 0 and token.nesting <= 0 and begins:
            whole, line = number + 1, begins[1]
    del state.tokens[whole:]
    rest = Token("code_block", "code", 0)
    rest.content = "\n".join(state.src.split("\n")[line:])
    rest.map = [line, state.src.count("\n") + 1]
    state.tokens.append(rest)


def _count_block_steps(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:
    """Is asked at each block, and at each line whether it ends the one before, once for each level of nesting."""
    effort.on_blocks(state.env).spend(1 if silent else effort.BLOCK_STEPS)
    return False


def _count_inside_steps(state: StateInline, silent: bool) -> bool:
    run = _MARKERS.match(state.src, state.pos, state.posMax)  # each of them becomes a token
    effort.inside(state.env).spend(1 + len(run[0]) // effort.MARKERS_A_STEP if run else 1)
    return False


def _too_deep(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:
    """Turns blocks nested deeper than `DEEPEST_BLOCK` into a paragraph; the library would drop them."""
    if silent or state.level < DEEPEST_BLOCK:
        return False
    line = start_line
    while line < end_line and (state.isEmpty(line) or state.sCount[line] >= state.blkIndent):
        line += 1
    opening = state.push("paragraph_open", "p", 1)
    opening.map = [start_line, line]
    token = state.push("inline", "", 0)
    token.content = state.getLines(start_line, line, state.blkIndent, False).strip()
    token.map = opening.map
    token.children = []
    state.push("paragraph_close", "p", -1)
    state.line = line
    return True


def _table_of_bearable_size(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:
    """Parses a table unless it has so many cells, most of them not written in the text, that they would freeze the
    page."""
    if not table(state, start_line, end_line, True):
        return False
    begin, end = state.bMarks[start_line], state.src.find("\n\n", state.eMarks[start_line])
    end = len(state.src) if end < 0 else end
    columns = state.src.count("|", state.bMarks[start_line + 1], state.eMarks[start_line + 1]) + 1
    rows, signs = state.src.count("\n", begin, end), state.src.count("|", begin, end)
    cells = columns * rows
    if cells > MOST_EMPTY_CELLS + 2 * signs:
        return False
    if silent:
        return True
    effort.on_blocks(state.env).spend(max(signs - rows, cells // 2 - rows, 0))
    first = len(state.tokens)
    table(state, start_line, end_line, False)
    _keep_surplus_cells(state, first)
    return True


def _keep_surplus_cells(state: StateBlock, first: int) -> None:
    """Keeps the text of a row with more cells than the table has columns (usually a "|" within code): the last cell
    takes the rest, which the library, like GitHub, would drop."""
    cells: list[Token] = []
    for token in state.tokens[first:]:
        if token.type == "tr_open":
            cells = []
        elif token.type == "inline":
            cells.append(token)
        elif token.type == "tr_close" and cells[0].map:
            line = cells[0].map[0]
            row = state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]].strip()
            parts = _CELL_END.split(row.removeprefix("|"))
            if any(part.strip() for part in parts[len(cells) :]):
                rest = "|".join(parts[len(cells) - 1 :]).strip()
                cells[-1].content = rest.removesuffix("|").rstrip().replace("\\|", "|")


def _break_in_cell(state: StateInline, silent: bool) -> bool:
    """Turns `<br>` in a table's cell into a line break."""
    found = _BREAK.match(state.src, state.pos, state.posMax) if state.env.get(IN_CELL) else None
    if found is None:
        return False
    if not silent:
        state.push("hardbreak", "br", 0)
    state.pos = found.end()
    return True
