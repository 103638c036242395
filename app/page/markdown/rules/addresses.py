"""Turns addresses in running text into links, as GitHub does: http://..., www..., and me@example.com.

The library's own rule looks for them in quadratic time. These rules begin at the sign that every such address has and
look at each character once.
"""

from __future__ import annotations

import re

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline

_SCHEME = re.compile(r"https?\Z", re.IGNORECASE)
# An address ends where a Chinese or Japanese sentence continues, and at every character that ends it in Markdown.
_END = r"\s<>\[\]\"`{}|\\^\u3000-\u303f\uff00-\uffef\u2018-\u201f"
_ADDRESS = re.compile(rf"://[^\W_][^{_END}]*")
_WWW = re.compile(rf"www\.[^\W_][^{_END}]*\.[^\W_][^{_END}]*", re.IGNORECASE)
_WWW_BEGINS = r"(?<![\w./@-])(?=[wW]{3}\.[^\W_])"
_LOCAL = re.compile(r"[A-Za-z0-9.+_-]{1,64}\Z")
_DOMAIN = re.compile(r"@([A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])")
_TRAILING = "?!.,:;*_~'"


def add_to(parser: MarkdownIt) -> None:
    """Adds the rules to a parser, and lets its text end where "www." begins."""
    parser.inline.ruler.at("linkify", _bare_address)
    parser.inline.ruler.after("linkify", "email", _email)
    parser.inline.ruler.before("linkify", "www", _www)
    parser.inline.terminator_re = re.compile(f"{parser.inline.terminator_re.pattern}|{_WWW_BEGINS}")
    parser.enable("linkify")


def _bare_address(state: StateInline, silent: bool) -> bool:
    if silent or state.linkLevel > 0 or state.src[state.pos] != ":":
        return False
    scheme = _SCHEME.search(state.pending[-5:])
    if scheme is None or not _may_begin_after(_sign_before(state, len(scheme[0]))):
        return False
    found = _ADDRESS.match(state.src, state.pos, state.posMax)
    if found is None:
        return False
    rest = _without_trailing(found[0])
    return _link(state, scheme[0], rest, scheme[0] + rest)


def _www(state: StateInline, silent: bool) -> bool:
    if silent or state.linkLevel > 0 or state.src[state.pos] not in "wW":
        return False
    if not _may_begin_after(_sign_before(state, 0)):
        return False
    found = _WWW.match(state.src, state.pos, state.posMax)
    if found is None:
        return False
    address = _without_trailing(found[0])
    return _link(state, "", address, f"http://{address}")


def _email(state: StateInline, silent: bool) -> bool:
    if silent or state.linkLevel > 0 or state.src[state.pos] != "@":
        return False
    local = _LOCAL.search(state.pending[-64:])
    domain = _DOMAIN.match(state.src, state.pos, state.posMax)
    if local is None or domain is None:
        return False
    before = _sign_before(state, len(local[0]))
    if before == "_" or not _may_begin_after(before):  # an underscore may belong to it, or be emphasis
        return False
    return _link(state, local[0], domain[0], f"mailto:{local[0]}{domain[0]}")


def _link(state: StateInline, before: str, rest: str, address: str) -> bool:
    """Makes `before`, which is pending text, and `rest`, which begins here, a link."""
    href = state.md.normalizeLink(address)
    if not state.md.validateLink(href):
        return False
    if before:
        state.pending = state.pending[: -len(before)]
    opening = state.push("link_open", "a", 1)
    opening.attrs = {"href": href}
    opening.markup = "linkify"
    state.push("text", "", 0).content = before + rest
    state.push("link_close", "a", -1)
    state.pos += len(rest)
    return True


def _sign_before(state: StateInline, length: int) -> str:
    at = state.pos - length - 1
    return state.src[at] if at >= 0 else ""


def _may_begin_after(sign: str) -> bool:
    """Whether a link may begin after this character: as on GitHub, and also after letters of scripts that put no spaces
    between words, but not within an HTML attribute shown as text."""
    return not sign or sign.isspace() or sign in "*_~([" or ord(sign) > 0x2E80


def _without_trailing(address: str) -> str:
    """The address without the sentence's punctuation at its end: a full stop, or a bracket
    that closes one opened before the address."""
    unopened = address.count(")") - address.count("(")
    end = len(address)
    while end > 4:
        last = address[end - 1]
        if last == ")" and unopened > 0:
            unopened -= 1
        elif last not in _TRAILING:
            break
        end -= 1
    return address[:end]
