"""Rewrites Gradio's index page to run under a policy that allows only listed inline scripts and styles."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from html.parser import HTMLParser

from app.page.first.frame import Frame

# Gradio adds this for pages shown in other sites' frames; ours never is.
FRAME_RESIZER = "iframeResizer.contentWindow"


@dataclass(frozen=True, slots=True)
class StrictPage:
    """The page, and the hashes of its style attributes in the form that a policy uses."""

    html: str
    style_hashes: tuple[str, ...]


def strict_page(page: str, nonce: str, frame: Frame) -> StrictPage:
    """The page with `nonce` on its inline scripts and styles, our files before its own and our frame before its body
    and style sheets, and without a `<base>`, a manifest, or the script that lets another site's frame resize it."""
    tags = _Tags(page)
    tags.feed(page)
    tags.close()
    # Gradio's own script is a module, which runs after all that stands in the body: after app/page/assets/gradio.js.
    ours, late = frame.head, ""
    pieces, at = [], 0
    for one in tags.found:
        text = page[one.start : one.end]
        if one.is_unwanted:
            text = ""
        elif one.is_inline:
            text = f'<{one.tag} nonce="{nonce}"{text[len(one.tag) + 1 :]}'
        elif one.tag == "body":
            text += frame.body(nonce) + late
        elif one.tag == "link":  # a style sheet of Gradio's: our frame is seen without it
            text, late = "", late + text
        else:
            text, ours = ours + text, ""
        pieces += [page[at : one.start], text]
        at = one.end
    return StrictPage("".join([*pieces, page[at:]]), tuple(map(_hash, tags.style_attributes)))


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


@dataclass(slots=True)
class _Piece:
    """A whole `<script>` or `<style>` element, or another element's first tag."""

    tag: str
    start: int
    end: int
    is_inline: bool
    is_unwanted: bool


class _Tags(HTMLParser):
    """Finds the pieces to change by parsing, so that text inside a script is never mistaken for a tag."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=False)
        self.found: list[_Piece] = []
        self.style_attributes: list[str] = []
        self._lines = [0]
        for line in page.split("\n"):
            self._lines.append(self._lines[-1] + len(line) + 1)
        self._open: _Piece | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        start = self._offset()
        end = start + len(self.get_starttag_text() or "")
        self.style_attributes += [given["style"] or ""] if "style" in given else []
        if tag == "base" or (tag == "link" and given.get("rel") == "manifest"):
            self.found.append(_Piece(tag, start, end, False, True))
        elif tag == "body" or (tag == "link" and given.get("rel") == "stylesheet"):
            self.found.append(_Piece(tag, start, end, False, False))
        elif tag in ("script", "style"):
            self._open = _Piece(tag, start, end, "src" not in given, False)
            self.found.append(self._open)

    def handle_data(self, data: str) -> None:
        if self._open is not None and FRAME_RESIZER in data:
            self._open.is_unwanted = True

    def handle_endtag(self, tag: str) -> None:
        if self._open is not None and tag == self._open.tag:
            self._open.end = self._offset() + len(f"</{tag}>")
            self._open = None

    def _offset(self) -> int:
        line, column = self.getpos()
        return self._lines[line - 1] + column
