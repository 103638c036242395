r"""LaTeX to MathML nodes, as far as latex2mathml produces only elements and attributes listed below.

Anything else (macros, unknown commands, lengths that could cover the page as `\rule{4000em}{4000em}` would, colours,
links, styles, unfinished input) is shown as its exact source. Half a formula would be worse than none.
"""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

from latex2mathml.commands import MATRICES
from latex2mathml.converter import convert_to_element

from app.page.markdown.effort import MATH_STEPS
from app.page.markdown.nodes import Child, Node

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

CLOSERS = {"$": "$", "$$": "$$", "\\(": "\\)", "\\[": "\\]"}
LONGEST_CHARACTERS = 1_000
_COMMAND = re.compile(r"\\[A-Za-z]+")
DEEPEST = 16
_MACROS = re.compile(r"\\(?:(?:re)?newcommand|providecommand|def|let|gdef|edef|newenvironment|require)\b")
_BEGIN = re.compile(r"\\begin\s*\{([^}]*)\}")
# The library drops the name of any other environment and draws what is inside.
_ENVIRONMENTS = {name.removeprefix("\\") for name in MATRICES} | {"gather", "gather*", "equation", "equation*"}
# Environments that the library does not know, and the ones that look the same.
_INNER = re.compile(r"\\(begin|end)\{(aligned|split|gathered)\}")
_OUTER = {"aligned": "align*", "split": "align*", "gathered": "gather*"}
# Element -> required number of children (None: any number).
_ELEMENTS: dict[str, int | None] = {
    "mrow": None,
    "mstyle": None,
    "mi": 0,
    "mn": 0,
    "mo": 0,
    "mtext": 0,
    "mspace": 0,
    "mfrac": 2,
    "msup": 2,
    "msub": 2,
    "msubsup": 3,
    "munder": 2,
    "mover": 2,
    "munderover": 3,
    "msqrt": None,
    "mroot": 2,
    "mtable": None,
    "mtr": None,
    "mtd": None,
    "menclose": None,
}
_SMALL = re.compile(r"[0-3]?(?:\.\d+)?em")
_FLAG = re.compile("true|false")
_ATTRIBUTES: dict[str, re.Pattern[str]] = {
    "stretchy": _FLAG,
    "fence": _FLAG,
    "separator": _FLAG,
    "accent": _FLAG,
    "accentunder": _FLAG,
    "largeop": _FLAG,
    "movablelimits": _FLAG,
    "displaystyle": _FLAG,
    "form": re.compile("prefix|infix|postfix"),
    "mathvariant": re.compile("normal"),
    "scriptlevel": re.compile("[0-2]"),
    "linethickness": re.compile("0"),
    "notation": re.compile("box"),
    "minsize": _SMALL,
    "maxsize": _SMALL,
    "width": _SMALL,
    "lspace": _SMALL,
    "rspace": _SMALL,
}
_IGNORED = frozenset({"columnalign", "rowspacing", "columnspacing"})  # browsers support none of them


class _Unknown(Exception):
    """An element, attribute or value that is not listed."""


def math(latex: str, opener: str, is_block: bool) -> Node:
    """A "math" node, or "math_source" with the original text."""
    children = _mathml(latex, _is_display(opener, is_block))
    if children is None:
        return as_written(latex, opener, is_block)
    display, source = ("display", _is_display(opener, is_block)), ("source", opener + latex + CLOSERS[opener])
    return Node("math", children, (display, source))


def as_written(latex: str, opener: str, is_block: bool) -> Node:
    """A "math_source" node."""
    display = ("display", _is_display(opener, is_block))
    return Node("math_source", (opener + latex + CLOSERS[opener],), (display,))


def steps_of(latex: str) -> int:
    """What `math` costs (`effort`)."""
    if len(latex) > LONGEST_CHARACTERS:
        return 0
    return MATH_STEPS * len(_COMMAND.sub(".", latex))


def _is_display(opener: str, is_block: bool) -> bool:
    return is_block or opener in ("$$", "\\[")


def _mathml(latex: str, display: bool) -> tuple[Child, ...] | None:
    if len(latex) > LONGEST_CHARACTERS or _MACROS.search(latex) or _braces_deep(latex) > DEEPEST:
        return None
    try:
        latex = _INNER.sub(lambda found: f"\\{found[1]}{{{_OUTER[found[2]]}}}", latex.strip())
        if not _ENVIRONMENTS.issuperset(_BEGIN.findall(latex)):
            return None
        element = convert_to_element(latex, display="block" if display else "inline")
        return tuple(_node(child, 0) for child in element)
    except Exception:  # the library raises many kinds of errors, RecursionError and StopIteration among them
        return None


def _node(element: Element, depth: int) -> Node:
    count = _ELEMENTS.get(element.tag, -1)
    if depth > DEEPEST or (count is not None and count != len(element)):
        raise _Unknown(element.tag)
    text = html.unescape(element.text or "")
    if element.tag != "mtext" and (text.startswith("\\") or text == "&"):
        raise _Unknown(text)
    attributes = tuple((name, _checked(name, value)) for name, value in element.attrib.items() if name not in _IGNORED)
    children: tuple[Child, ...] = tuple(_node(child, depth + 1) for child in element)
    return Node(element.tag, (text, *children) if text else children, attributes)


def _checked(name: str, value: str) -> str:
    allowed = _ATTRIBUTES.get(name)
    if allowed is None or not allowed.fullmatch(value):
        raise _Unknown(name)
    return value


def _braces_deep(latex: str) -> int:
    depth = deepest = 0
    for sign in latex:
        depth += (sign == "{") - (sign == "}")
        deepest = max(deepest, depth)
    return deepest
