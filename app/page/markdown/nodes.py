"""The nodes that an answer may consist of. app/page/assets/answer.js knows the same kinds, and no others."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

# A page nested deeper than this can overflow the stack of code that walks it: Python's JSON, the browser's layout.
DEEPEST = 48


@dataclass(frozen=True, slots=True)
class Node:
    """One node: its kind, its children in order (text is a plain string), and its attributes as (name, value) pairs."""

    kind: str
    children: tuple[Node | str, ...] = ()
    attributes: tuple[tuple[str, str | int | bool], ...] = ()


Child = Node | str


def to_json(node: Node) -> str:
    """`[kind, {attributes}, [children]]` as compact JSON; text stays a string."""
    return json.dumps(_plain(node), ensure_ascii=False, separators=(",", ":"))


def text_of(child: Child) -> str:
    """All the text below a node, in order."""
    return child if isinstance(child, str) else "".join(text_of(below) for below in child.children)


def _plain(child: Child) -> Any:
    if isinstance(child, str):
        return child
    return [child.kind, dict(child.attributes), [_plain(below) for below in child.children]]


class Builder:
    """Builds nodes from opening and closing calls. Joins neighbouring text. A node nested too deep is replaced by its
    children, so that its text stays."""

    def __init__(self) -> None:
        self.top: list[Child] = []
        self._open: list[tuple[str, tuple[tuple[str, str | int | bool], ...], list[Child]]] = []

    def open(self, kind: str, **attributes: str | int | bool) -> None:
        """Opens a node; what is added next becomes its child."""
        self._open.append((kind, tuple(attributes.items()), []))

    def mark(self, attribute: str) -> None:
        """Sets one more attribute on the node that was opened last."""
        kind, attributes, children = self._open[-1]
        self._open[-1] = (kind, (*attributes, (attribute, True)), children)

    def close(self) -> None:
        """Closes the node that was opened last."""
        kind, attributes, children = self._open.pop()
        if len(self._open) >= DEEPEST:
            for child in children:
                self.add(child)
        else:
            self.add(Node(kind, tuple(children), attributes))

    def add(self, child: Child) -> None:
        """Adds a finished node, or text."""
        into = self._open[-1][2] if self._open else self.top
        if isinstance(child, str):
            if not child:
                return
            if into and isinstance(into[-1], str):
                into[-1] += child
                return
        into.append(child)
