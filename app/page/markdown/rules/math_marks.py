r"""Finds mathematics: `$..$`, `$$..$$`, `\(..\)`, `\[..\]`.

A dollar can also be money or a shell variable. It opens mathematics only if a character other than a space follows, and
the next dollar closes it only after a character other than a space and not before a letter or digit: "$5 and $6" stays
text.
"""

from __future__ import annotations

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline

LONGEST_CHARACTERS = 2_000
LONGEST_LINES = 60
_CLOSERS = {"$$": "$$", "\\[": "\\]", "\\(": "\\)"}


def add_to(parser: MarkdownIt) -> None:
    """Adds the rules to a parser. Tokens are `math_inline` and `math_block`: content, and the opener as markup."""
    parser.inline.ruler.before("escape", "math_brackets", _brackets)
    parser.inline.ruler.before("escape", "math_dollars", _dollars)
    terminates = ["paragraph", "reference", "blockquote", "list"]
    parser.block.ruler.before("fence", "math_block", _block, {"alt": terminates})


def _dollars(state: StateInline, silent: bool) -> bool:
    src, pos = state.src, state.pos
    if src[pos] != "$":
        return False
    if src.startswith("$$", pos):
        end = _find(src, "$$", pos + 2, state.posMax)
        if end > pos + 2 and src[pos + 2 : end].strip():
            return _take(state, "$$", end, silent)
        return _as_text(state, "$$", silent)
    if pos > 0 and src[pos - 1].isalnum():
        return False
    end = _find(src, "$", pos + 1, state.posMax)
    if end <= pos + 1 or src[pos + 1].isspace() or src[end - 1].isspace():
        return False
    after = src[end + 1 : end + 2]
    if after == "$" or after.isalnum():
        return False
    return _take(state, "$", end, silent)


def _brackets(state: StateInline, silent: bool) -> bool:
    opener = state.src[state.pos : state.pos + 2]
    if opener not in ("\\(", "\\["):
        return False
    end = _find(state.src, _CLOSERS[opener], state.pos + 2, state.posMax)
    if end < 0 or not state.src[state.pos + 2 : end].strip():
        return False
    if opener == "\\[" and state.src.startswith("(", end + 2):  # an escaped link, not mathematics
        return False
    return _take(state, opener, end, silent)


def _find(src: str, closer: str, start: int, end: int) -> int:
    """The position of the next `closer` that is not escaped, -1 if there is none within `LONGEST_CHARACTERS`."""
    end = min(end, start + LONGEST_CHARACTERS)
    found = src.find(closer, start, end)
    while found > start and closer[0] == "$" and src[found - 1] == "\\":
        found = src.find(closer, found + 1, end)
    return found


def _take(state: StateInline, opener: str, end: int, silent: bool) -> bool:
    if not silent:
        token = state.push("math_inline", "math", 0)
        token.content = state.src[state.pos + len(opener) : end]
        token.markup = opener
    state.pos = end + len(opener)
    return True


def _as_text(state: StateInline, text: str, silent: bool) -> bool:
    if not silent:
        state.append_pending(text)
    state.pos += len(text)
    return True


def _block(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:
    """Parses lines from one that begins with an opener to one that ends with its closer, without an empty line
    between."""
    if state.is_code_block(start_line):
        return False
    first = _line(state, start_line)
    opener = first[:2]
    if opener not in ("$$", "\\["):
        return False
    closer = _CLOSERS[opener]
    begin = state.bMarks[start_line] + state.tShift[start_line] + 2
    if state.src.find(closer, begin, begin + LONGEST_CHARACTERS) < 0:
        return False
    last = start_line
    text = first[2:]
    while not text.endswith(closer):
        if closer in text:  # text follows: the inline rules decide
            return False
        last += 1
        if last >= min(end_line, start_line + LONGEST_LINES) or state.isEmpty(last):
            return False
        if state.sCount[last] < state.blkIndent:
            return False
        text = _line(state, last)
    lines = state.getLines(start_line, last + 1, state.blkIndent, False).strip()
    content = lines[2:-2]
    if closer in content or len(lines) < 4 or not content.strip() or len(content) > LONGEST_CHARACTERS:
        return False
    if silent:
        return True
    token = state.push("math_block", "math", 0)
    token.content = content
    token.markup = opener
    token.map = [start_line, last + 1]
    state.line = last + 1
    return True


def _line(state: StateBlock, line: int) -> str:
    return state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]].rstrip()
