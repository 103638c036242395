"""What people and models wrote, made safe to show: the page's Markdown renderer would otherwise swallow it as HTML.

A person's message is shown letter by letter. A model's answer is Markdown, but never HTML: `<b>` and `<script>` in it
stay visible text, and images of foreign hosts become links.
"""

from __future__ import annotations

import re

_PUNCTUATION = str.maketrans({sign: f"&#{ord(sign)};" for sign in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"})
_FENCE = re.compile(r" {0,3}(?:[-*+] +|\d{1,9}[.)] +|> ?)*(`{3,}|~{3,})(.*)")
_CODE_SPAN = re.compile(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
_PARAGRAPH_END = re.compile(r"(\n[ \t]*\n)")


def literal(text: str) -> str:
    """Markdown that shows exactly `text`: every sign as an entity, line breaks kept, nothing interpreted."""
    lines = [_keep_indent(line).translate(_PUNCTUATION) for line in text.split("\n")]
    return "<br>".join(lines)


def answer(text: str) -> str:
    """Markdown in which no HTML is left, for an answer that may still be growing (an open code block is code)."""
    shown: list[str] = []
    prose: list[str] = []
    fence = ""
    for line in text.split("\n"):
        match = _FENCE.fullmatch(line)
        if fence:
            shown.append(line)
            if match and match[1].startswith(fence) and not match[2].strip():
                fence = ""
        elif match and "`" not in match[2]:
            shown += _without_html(prose)
            prose = []
            fence = match[1]
            # The renderer would run a diagram language on text nobody checked.
            shown.append(re.sub(r"mermaid\b", "text", line, flags=re.IGNORECASE))
        else:
            prose.append(line)
    return "\n".join(shown + _without_html(prose))


def _without_html(lines: list[str]) -> list[str]:
    if not lines:
        return []
    pieces = _PARAGRAPH_END.split("\n".join(lines))
    return "".join(_escape_paragraph(piece) for piece in pieces).split("\n")


def _escape_paragraph(text: str) -> str:
    """Escapes outside `code spans`, which do not reach over a blank line."""
    if text.startswith(("    ", "\t")):  # an indented code block is escaped by the renderer itself
        return text
    done: list[str] = []
    start = 0
    for span in _CODE_SPAN.finditer(text):
        done += [_escape(text[start : span.start()]), span[0]]
        start = span.end()
    done.append(_escape(text[start:]))
    return "".join(done)


def _escape(text: str) -> str:
    return text.replace("<", "&lt;").replace("![", "&#33;[")


def _keep_indent(line: str) -> str:
    stripped = line.lstrip(" \t")
    indent = line[: len(line) - len(stripped)].replace("\t", "    ")
    return "\u00a0" * len(indent) + stripped
