"""An answer's tree as one line of pseudo-HTML: what a person sees, and how it is nested."""

from __future__ import annotations

from typing import Any

_TAGS = {
    "paragraph": "p", "quote": "quote", "bullets": "ul", "numbers": "ol", "item": "li", "row": "tr", "cell": "td",
    "header_cell": "th", "emphasis": "em", "strong": "strong", "struck": "s", "code": "code", "code_block": "pre",
    "note": "note", "note_mark": "mark", "note_link": "sup", "table": "table",
}  # fmt: skip
_NO_TAGS = ("token", "head", "body")  # colours of code, and parts that every table has


def outline(tree: Any) -> str:
    """Blocks one after the other. Line feeds that only separate words for readers of the text are left out."""
    if isinstance(tree, str):
        return tree
    if not tree or not isinstance(tree[0], str) or not isinstance(tree[1], dict):
        return "".join(outline(block) for block in tree)
    kind, attributes, children = tree
    if kind in ("break", "rule"):
        return {"break": "<br>", "rule": "<hr>"}[kind]
    if kind == "task":
        return "<done>" if attributes["done"] else "<todo>"
    if kind in ("math", "math_source"):
        return f"<{kind}>{attributes['source']}</{kind}>" if kind == "math" else f"<source>{children[0]}</source>"
    inside = "".join(outline(child) for child in children)
    if kind in _NO_TAGS:
        return inside.strip("\n") if kind != "token" else inside
    if kind not in ("code_block", "code"):
        inside = inside.replace("<br>\n", "<br>").replace("\n<", "<").removesuffix("\n")
    tag = f"h{attributes['level']}" if kind == "heading" else _TAGS.get(kind, "a")
    notes = [attributes.get("align", ""), f"start={attributes['start']}" if "start" in attributes else ""]
    if kind == "link":
        notes = ["picture" if attributes.get("picture") else "", attributes["href"]]
    said = " ".join(note for note in notes if note)
    return f"<{tag}{' ' + said if said else ''}>{inside}</{tag}>"
