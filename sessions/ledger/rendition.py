"""When two texts are renditions of one answer: a normal form that both have then. Pure functions.

Clients send answers back as they show or store them: trimmed, with other line ends, or written anew by a Markdown
editor. What such a rendition changes without changing what is said is left out of the comparison: white space at the
ends of the text and of its lines, blank lines in a row, spaces in a row, the marks of list items, of emphasis and of
rules, escaped marks, the five entities of HTML, and how accents are composed. Code, in fences anywhere, in indented
blocks and in lines, is compared character by character, and so is everything else: words, numbers, indentation,
punctuation, the order of lines."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from sessions.text_search import long_mark_runs

_LONGEST_CHARS = 1_000_000  # longer texts are compared without their ends alone
_FENCE = re.compile(r"^([ \t>]*(?:(?:[*+-]|\d{1,9}[.)])[ \t]+)*)(`{3,}(?=[^`]*$)|~{3,})")  # also in quotes and lists
_QUOTED = re.compile(r"^[ \t>]*")
_INDENTED = re.compile(r"^[ >]*(?:\t| {4}|(?:[*+-]|\d{1,9}[.)]) {5})")  # in a quote or a list item, too
_CODE = re.compile(r"(`[^`]*`)")
_CODE_WITH_MARKS = re.compile(r"(`.*`)")
_BULLET = re.compile(r"^(\s*)[*+-][ \t]+(?=[^\s\d])")
_NUMBER = re.compile(r"^(\s*\d{1,9})[.)][ \t]+(?=\S)")
_RULE = re.compile(r"^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$")
_EMPHASIS = re.compile(r"(?<![\w_*])(_{1,2})(?=[^\s_])([^_]*[^\s_])\1(?![\w_])")
_ESCAPED = re.compile(r"\\([*_#>~|])")
_ENTITY = re.compile("&(amp|lt|gt|quot|apos|#39|#x27|nbsp);")
_ENTITIES = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'", "#39": "'", "#x27": "'", "nbsp": " "}
_SPACES = re.compile(r"(?<=\S)[ \t\u00a0]+")
_TABLE_RULE = re.compile(r"-{3,}")


def normal_form(answer: str) -> str:
    """Equal for two texts that are renditions of one answer. Takes a time that grows with the text's length alone."""
    text = answer.replace("\r\n", "\n").replace("\r", "\n").strip()
    if len(text) > _LONGEST_CHARS:
        return text
    if not text.isascii() and not long_mark_runs(text):
        text = unicodedata.normalize("NFC", text)
    lines: list[str] = []
    blank: list[str] = []
    fence: _Fence | None = None
    was_indented = False
    for line in text.split("\n"):
        if fence is not None and not fence.is_left_by(line):
            is_end = fence.is_closed_by(line)
            lines.append(line.rstrip() if is_end else line)
            fence = None if is_end else fence
            continue
        fence = None
        if not line.strip():
            blank.append(line)
            continue
        fence, is_indented = _opened(line), bool(_INDENTED.match(line))
        lines += blank if was_indented and is_indented else [""] * bool(blank)
        lines.append(line if is_indented else _marked(line.rstrip()) if fence else _plain_line(line))
        blank, was_indented = [], is_indented
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class _Fence:
    """The beginning of a block of code: its mark, the column where it stands, and in how many quotes."""

    mark: str
    column: int
    quotes: int

    def is_closed_by(self, line: str) -> bool:
        """Whether the line certainly closes it. Else what comes is compared as code, which is the safe side."""
        prefix = _quoted(line)
        mark = line[len(prefix) :].rstrip()
        if not mark.startswith(self.mark) or mark.strip(self.mark[0]):
            return False
        return prefix.count(">") == self.quotes and _columns(prefix) <= max(3 + 2 * self.quotes, self.column)

    def is_left_by(self, line: str) -> bool:
        """Whether the line is outside of the quote that the fence is in."""
        return _quoted(line).count(">") < self.quotes


def _opened(line: str) -> _Fence | None:
    found = _FENCE.match(line)
    return _Fence(found[2], _columns(found[1]), found[1].count(">")) if found else None


def _quoted(line: str) -> str:
    found = _QUOTED.match(line)
    return found[0] if found else ""


def _columns(prefix: str) -> int:
    return len(prefix.expandtabs(4))


def _marked(line: str) -> str:
    """With one kind of mark before a list's item."""
    return _NUMBER.sub(r"\1. ", _BULLET.sub(r"\1- ", line))


def _plain_line(line: str) -> str:
    line = line.rstrip()
    if _RULE.match(line):
        return "---"
    line = _marked(line)
    if line.lstrip().startswith("|"):
        line = _TABLE_RULE.sub("---", line)
    pieces = (_CODE_WITH_MARKS if "``" in line else _CODE).split(line)
    pieces[::2] = [_plain(piece) for piece in pieces[::2]]
    return "".join(pieces)


def _plain(text: str) -> str:
    if "&" in text:
        text = _ENTITY.sub(lambda found: _ENTITIES[found[1]], text)
    if "\\" in text:
        text = _ESCAPED.sub(r"\1", text)
    if "_" in text:
        text = _EMPHASIS.sub(lambda found: f"{'*' * len(found[1])}{found[2]}{'*' * len(found[1])}", text)
    return _SPACES.sub(" ", text)
