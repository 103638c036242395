"""Turns tokens into nodes. A token that is not listed here becomes plain text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from markdown_it.token import Token

from app.page.markdown import code, effort
from app.page.markdown.math import as_written, math, steps_of
from app.page.markdown.nodes import Builder, Child, Node
from app.page.markdown.parser import IN_CELL, AnswerParser, Env

LONGEST_PARAGRAPH_CHARACTERS = 20_000
LONGEST_NARROW_CELL = 20  # characters; a column with a longer cell is not squeezed to one word per line
_BLOCKS = {
    "paragraph": "paragraph",
    "blockquote": "quote",
    "bullet_list": "bullets",
    "ordered_list": "numbers",
    "list_item": "item",
    "heading": "heading",
    "table": "table",
    "thead": "head",
    "tbody": "body",
    "tr": "row",
    "th": "header_cell",
    "td": "cell",
    "note": "note",
}
_SPANS = {"em": "emphasis", "strong": "strong", "s": "struck"}
_ALIGN = "text-align:"


@dataclass(frozen=True, slots=True)
class Block:
    """One outermost block, and the line it begins on, counted from 0."""

    node: Node
    first_line: int


class Tree:
    """Builds the nodes of one answer. Caches paragraphs and code, because a growing answer is built many times."""

    def __init__(self, parser: AnswerParser) -> None:
        self._parser = parser
        self._known_inline: dict[tuple[str, bool], tuple[Child, ...]] = {}
        self._known_code: dict[tuple[str, str], tuple[Child, ...]] = {}

    def blocks(self, tokens: list[Token], env: Env) -> list[Block]:
        """The outermost blocks in order."""
        builder = Builder()
        done: list[Block] = []
        first_line = 0
        for number, token in enumerate(tokens):
            if token.level == 0 and token.map:
                first_line = token.map[0]
            self._add(builder, token, env)
            if token.type in ("th_open", "td_open"):
                env[IN_CELL] = True
                if len(tokens[number + 1].content) > LONGEST_NARROW_CELL:
                    builder.mark("wide")
            elif token.type in ("th_close", "td_close"):
                env[IN_CELL] = False
            if token.level == 0 and token.nesting <= 0 and builder.top:
                done += [Block(_as_block(child), first_line) for child in builder.top]
                builder.top.clear()
        return done

    def _add(self, builder: Builder, token: Token, env: Env) -> None:
        if token.nesting != 0:
            self._open_or_close(builder, token)
        elif token.type == "inline":
            for child in self._inline(token.content, env):
                builder.add(child)
        elif token.type in ("fence", "code_block"):
            builder.add(self._code(token, env))
        elif token.type == "hr":
            builder.add(Node("rule"))
        elif token.type == "math_block":
            builder.add(_formula(token, True, env))
        else:
            builder.add(token.content)

    def _open_or_close(self, builder: Builder, token: Token) -> None:
        if token.hidden:  # paragraphs of a list without empty lines
            if token.nesting < 0:
                builder.add("\n")
            return
        kind = _BLOCKS.get(token.type.rpartition("_")[0])
        if kind is None:
            return
        if token.nesting < 0:
            builder.close()
            if token.level > 0:  # separates words for readers of the text alone
                builder.add("\n")
            return
        builder.open(kind, **_block_attributes(kind, token))
        if kind == "note":
            builder.add(Node("note_mark", (token.content,)))
        if "checked" in token.meta:
            builder.add(Node("task", (), (("done", bool(token.meta["checked"])),)))

    def _inline(self, text: str, env: Env) -> tuple[Child, ...]:
        key = (text, bool(env.get(IN_CELL)))
        known = self._known_inline.get(key)
        if known is None:
            try:
                known = self._parsed_inline(text, env)
            except effort.TooCostly:
                return _with_breaks(text)
            self._known_inline[key] = known
        return known

    def _parsed_inline(self, text: str, env: Env) -> tuple[Child, ...]:
        if len(text) > LONGEST_PARAGRAPH_CHARACTERS:
            return _with_breaks(text)
        builder = Builder()
        for token in _without_empty_links(self._parser.inline_tokens(text, env)):
            if token.type == "math_inline":
                builder.add(_formula(token, False, env))
            else:
                _add_span(builder, token)
        return tuple(builder.top)

    def _code(self, token: Token, env: Env) -> Node:
        language = token.info.split()[0].lower() if token.info.strip() else ""
        key = (language, token.content)
        children = self._known_code.get(key)
        if children is None:
            try:
                children = code.highlighted(token.content, language, effort.inside(env))
            except effort.TooCostly:
                return Node("code_block", (token.content,))
            self._known_code[key] = children
        return Node("code_block", children)


def _formula(token: Token, is_block: bool, env: Env) -> Node:
    try:
        effort.inside(env).spend(steps_of(token.content))
    except effort.TooCostly:
        return as_written(token.content, token.markup, is_block)
    return math(token.content, token.markup, is_block)


def _block_attributes(kind: str, token: Token) -> dict[str, str | int | bool]:
    if kind == "heading":
        return {"level": int(token.tag[1:])}
    if kind == "numbers":
        start = token.attrs.get("start", 1)
        return {} if start == 1 else {"start": int(start)}
    if kind in ("cell", "header_cell"):
        align = str(token.attrs.get("style", "")).removeprefix(_ALIGN)
        return {"align": align} if align in ("left", "center", "right") else {}
    return {}


def _without_empty_links(tokens: list[Token]) -> list[Token]:
    """The tokens, with links and pictures without an address as they were written."""
    is_empty = False
    for token in tokens:
        if token.type == "link_open":
            is_empty = not token.attrs["href"]
            if is_empty:
                token.type, token.content = "text", "["
        elif token.type == "link_close" and is_empty:
            token.type, token.content = "text", "]()"
        elif token.type == "image" and not token.attrs["src"]:
            token.type, token.content = "text", f"![{_alternative(token.children or [])}]()"
    return tokens


def _add_span(builder: Builder, token: Token) -> None:
    add = _LEAVES.get(token.type)
    if add is not None:
        add(builder, token)
        return
    name = token.type.removesuffix("_open").removesuffix("_close")
    if name == "link" and token.nesting > 0:
        builder.open("link", href=str(token.attrs["href"]))
    elif name == "link":
        builder.close()
    elif name in _SPANS:
        if token.nesting > 0:
            builder.open(_SPANS[name])
        else:
            builder.close()
    else:
        builder.add(token.content)


def _picture(builder: Builder, token: Token) -> None:
    """Adds a link to the picture: fetching it would tell its host who reads the answer, and leak what its address
    contains."""
    href = str(token.attrs["src"])
    alt = _alternative(token.children or []).strip() or href
    builder.add(Node("link", (alt,), (("href", href), ("picture", True))))


def _alternative(tokens: list[Token]) -> str:
    parts = [_alternative(token.children) if token.children else token.content for token in tokens]
    return "".join(parts)


def _with_breaks(text: str) -> tuple[Child, ...]:
    builder = Builder()
    for number, line in enumerate(text.split("\n")):
        if number:
            _break(builder)
        builder.add(line)
    return tuple(builder.top)


def _break(builder: Builder) -> None:
    builder.add(Node("break"))
    builder.add("\n")


def _as_block(child: Child) -> Node:
    return Node("paragraph", (child,)) if isinstance(child, str) else child


# A line break in a chat is intentional: no one wraps lines by hand there.
_LEAVES: dict[str, Callable[[Builder, Token], None]] = {
    "softbreak": lambda builder, token: _break(builder),
    "hardbreak": lambda builder, token: _break(builder),
    "code_inline": lambda builder, token: builder.add(Node("code", (token.content,))),
    "image": _picture,
    "note_link": lambda builder, token: builder.add(Node("note_link", (token.content,))),
}
