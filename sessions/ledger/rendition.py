"""When two texts are renditions of one answer: a normal form that both have then. Pure functions.

Clients send answers back as they show or store them: trimmed, with other line ends, or written anew by a Markdown
editor. What such a rendition changes without changing what is said is left out of the comparison: white space at the
ends of the text and of its lines, blank lines in a row, spaces in a row, the marks of list items, of emphasis and of
rules, escaped marks, the five entities of HTML, and how accents are composed. Code, in blocks and in lines, is compared
character by character, and so is everything else: words, numbers, indentation, punctuation, the order of lines."""

from __future__ import annotations

import re
import unicodedata

from sessions.text import long_mark_runs

_LONGEST_CHARS = 1_000_000  # longer texts are compared without their ends alone
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
_CODE = re.compile(r"(`[^`]*`)")
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
    if not text.isascii() and not long_mark_runs().search(text):
        text = unicodedata.normalize("NFC", text)
    lines: list[str] = []
    fence = ""
    for line in text.split("\n"):
        if fence:
            is_end = line.strip().startswith(fence) and not line.strip().strip(fence[0])
            lines.append(fence if is_end else line)
            fence = "" if is_end else fence
        elif opening := _FENCE.match(line):
            fence = opening[1]
            lines.append(line.strip())
        elif line.strip() or (lines and lines[-1]):
            lines.append(_plain_line(line))
    return "\n".join(lines)


def _plain_line(line: str) -> str:
    line = line.rstrip()
    if _RULE.match(line):
        return "---"
    line = _NUMBER.sub(r"\1. ", _BULLET.sub(r"\1- ", line))
    if line.lstrip().startswith("|"):
        line = _TABLE_RULE.sub("---", line)
    pieces = _CODE.split(line)
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
