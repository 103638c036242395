"""Footnotes: `[^label]` in the text, and `[^label]: ...` where the note stands.

A note stays where the answer has it. Its mark is its label if that is a number, else the next free number. A label
without a note stays text, as does a second note with the same label: nothing that was written disappears.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline

_DEFINITION = re.compile(r"\[\^([^\s\[\]^]{1,60})\]:[ \t]*")
_REFERENCE = re.compile(r"\[\^([^\s\[\]^]{1,60})\]")
_INDENT = 4
_NOTES = "footnotes"


@dataclass(slots=True)
class _Notes:
    """The marks of a text's notes by label."""

    marks: dict[str, str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    next_number: int = 1

    def add(self, label: str) -> str:
        """The mark of a new note."""
        mark = label
        if not label.isdecimal() or label in self.taken:
            while str(self.next_number) in self.taken:
                self.next_number += 1
            mark = str(self.next_number)
        self.taken.add(mark)
        self.marks[label.casefold()] = mark
        return mark


def add_to(parser: MarkdownIt) -> None:
    """Adds the rules. Tokens: `note_open` and `note_close` around blocks, `note_link` in text; the mark is the
    content."""
    parser.block.ruler.before("reference", "note", _note, {"alt": ["paragraph", "reference"]})
    parser.inline.ruler.before("link", "note_link", _note_link)


def are_in(env: MutableMapping[str, Any]) -> bool:
    """Whether the text has notes. A note may turn an earlier `[^label]` into its mark."""
    return _NOTES in env


def _note(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:
    if state.is_code_block(start_line):
        return False
    begin = state.bMarks[start_line] + state.tShift[start_line]
    found = _DEFINITION.match(state.src, begin, state.eMarks[start_line])
    if found is None or _mark_of(state.env, found[1]) is not None:
        return False
    if silent:
        return True
    opening = state.push("note_open", "div", 1)
    opening.content = state.env.setdefault(_NOTES, _Notes()).add(found[1])
    before = (state.bMarks[start_line], state.tShift[start_line], state.sCount[start_line], state.parentType)
    # What follows the colon, and lines that are indented, are the note's own blocks.
    state.bMarks[start_line], state.tShift[start_line] = found.end(), 0
    state.blkIndent += _INDENT
    state.sCount[start_line] = state.blkIndent
    state.parentType = "footnote"
    if found.end() < state.eMarks[start_line]:
        state.md.block.tokenize(state, start_line, end_line)
    else:
        state.line = start_line + 1
    state.blkIndent -= _INDENT
    state.bMarks[start_line], state.tShift[start_line], state.sCount[start_line], state.parentType = before
    opening.map = [start_line, state.line]
    state.push("note_close", "div", -1)
    return True


def _note_link(state: StateInline, silent: bool) -> bool:
    found = _REFERENCE.match(state.src, state.pos, state.posMax) if state.src[state.pos] == "[" else None
    mark = _mark_of(state.env, found[1]) if found else None
    if found is None or mark is None:
        return False
    if not silent:
        state.push("note_link", "sup", 0).content = mark
    state.pos = found.end()
    return True


def _mark_of(env: MutableMapping[str, Any], label: str) -> str | None:
    notes: _Notes | None = env.get(_NOTES)
    return None if notes is None else notes.marks.get(label.casefold())
