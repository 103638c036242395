"""Turns a rendered template into the ids that its tokenizer gives it, except that no text becomes a control token.

The whole rendering is tokenised in one call: only then do prefix spaces, words across the border of markup and text,
and the white space that control tokens absorb come out as the model was trained. Where a text spells a control token,
the template's own ones are given other names for that call, in a tokenizer that knows only those names.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from tokenizers import Encoding, Tokenizer

from model_runtime.interface.errors import TemplateRefused
from model_runtime.text.encoding import SHORT_CHARS, encoding_of, ids_of
from model_runtime.text.plain_text import HiddenTokens
from model_runtime.text.turn_ids.rendering import Rendered, Span

_NEUTRAL = "."  # no letter, which would change how tokens beside it are found, and no bracket
_ANCHORS = (".", "a", "1", "。", ")", "\n")

Place = tuple[int, int, int]  # id, and the first and last character + 1 of its token


class TurnEncoder:
    """`tokenizer` gives a text's own ids; `controls` are its control tokens, and `hidden` knows them by other names.
    Thread-safe once `allow_in_answers` was called."""

    def __init__(self, tokenizer: Tokenizer, controls: Collection[str], hidden: HiddenTokens) -> None:
        self._tokenizer = tokenizer
        self._hidden = hidden
        self._contents = {
            token_id: content for content in controls if (token_id := tokenizer.token_to_id(content)) is not None
        }
        self._unknown_id = hidden.unknown_id
        self._in_answers: frozenset[int] = frozenset()
        longest_first = sorted(filter(None, controls), key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._anchors = [(text, ids) for text in _ANCHORS if (ids := self._anchor_ids(text))]

    def allow_in_answers(self, contents: Iterable[str]) -> None:
        """Lets answers contain these control tokens. Called before any other thread knows the object."""
        allowed = frozenset(contents)
        self._in_answers = frozenset(i for i, content in self._contents.items() if content in allowed)

    def is_control(self, token_id: int) -> bool:
        return token_id in self._contents

    def spelled(self, role: str, text: str) -> list[tuple[int, int]]:
        """Where a text of that role spells a control token that it may not contain, letter by letter."""
        allowed = {self._contents[i] for i in self._in_answers} if role == "assistant" else ()
        return [found.span() for found in self._spelled.finditer(text) if found.group() not in allowed]

    def ids(self, rendered: Rendered) -> tuple[int, ...]:
        """The ids of a rendering, as those of a conversation's beginning. Raises `TemplateRefused`."""
        text, spans = rendered.text, rendered.spans
        if len(text) > SHORT_CHARS and not any(self._spelled.search(text, s.start, s.end) for s in spans):
            ids = ids_of(self._tokenizer, text)  # twice as fast as with places
            if self._controls(ids) == self._controls(ids_of(self._tokenizer, _blank(text, spans))):
                return tuple(ids)
        encoding = encoding_of(self._tokenizer, text)
        intruders = self._intruders(self._places(encoding, text), spans)
        return self._without(text, spans, intruders) if intruders else tuple(encoding.ids)

    def ids_after(self, rendered: Rendered, before: str = "") -> tuple[int, ...]:
        """The ids of a rendering that goes on behind other text, `before` at its end: no word begins here that did not
        begin in the text. Where the tokenizer would join the two, the border decides. Raises `TemplateRefused`."""
        for anchor, anchor_ids in self._anchors:
            for lead in dict.fromkeys((before, "")):
                lead_ids = tuple(ids_of(self._tokenizer, anchor + lead)) if lead else anchor_ids
                start = len(anchor) + len(lead)
                spans = tuple(Span(s.start + start, s.end + start, s.role) for s in rendered.spans)
                ids = self.ids(Rendered(anchor + lead + rendered.text, spans))
                if ids[: len(lead_ids)] == lead_ids:
                    return ids[len(lead_ids) :]
        return self.ids(rendered)

    def count_behind(self, text: str, border: int) -> int:
        """How many ids of a text that goes on behind other text stand for characters at or behind `border`."""
        anchor = self._anchors[0][0] if self._anchors else ""
        offsets = encoding_of(self._tokenizer, anchor + text).offsets
        return sum(end > len(anchor) + border for _, end in offsets)

    def _anchor_ids(self, anchor: str) -> tuple[int, ...]:
        ids = tuple(ids_of(self._tokenizer, anchor))
        return ids if self._tokenizer.decode(list(ids), skip_special_tokens=False).strip(" ") == anchor else ()

    def _controls(self, ids: Iterable[int]) -> list[int]:
        return [token_id for token_id in ids if token_id in self._contents and token_id != self._unknown_id]

    def _places(self, encoding: Encoding, text: str) -> list[Place]:
        """The control tokens in an encoding, without the white space that they absorb."""
        found: list[Place] = []
        for index, token_id in [(n, i) for n, i in enumerate(encoding.ids) if i in self._contents]:
            start, end = encoding.token_to_chars(index) or (0, len(text))
            content = self._contents[token_id].strip()
            inner = text.find(content, start, end)
            if inner >= 0:
                found.append((token_id, inner, inner + len(content)))
            elif token_id != self._unknown_id:  # which stands for what has no token of its own
                found.append((token_id, start, end))
        return found

    def _intruders(self, places: Iterable[Place], spans: Sequence[Span]) -> list[Place]:
        """The control tokens that a text has written or helped to write."""
        return [
            place
            for place in places
            if any(
                span.start < place[2]
                and place[1] < span.end
                and not (span.role == "assistant" and place[0] in self._in_answers)
                for span in spans
            )
        ]

    def _without(self, text: str, spans: Sequence[Span], intruders: Sequence[Place]) -> tuple[int, ...]:
        """The ids when all control tokens that the template did not write stay text."""
        clean = text
        while intruders:
            blanked = _blank_within(clean, spans, intruders)
            if blanked == clean:
                raise TemplateRefused("A message spells one of this model's control tokens. Leave it out.")
            clean = blanked
            places = self._places(encoding_of(self._tokenizer, clean), clean)
            intruders = self._intruders(places, spans)
        pieces, end = [], 0
        for token_id, start, stop in places:
            pieces += [text[end:start], self._hidden.names[self._contents[token_id]]]
            end = stop
        ids = tuple(ids_of(self._hidden.tokenizer, "".join([*pieces, text[end:]])))
        if self._controls(ids) != self._controls(token_id for token_id, _, _ in places):
            raise TemplateRefused("A message spells one of this model's control tokens. Leave it out.")
        return ids


def _blank(text: str, spans: Sequence[Span]) -> str:
    """The text with something neutral and short in place of the spans."""
    pieces, end = [], 0
    for span in spans:
        pieces += [text[end : span.start], _NEUTRAL]
        end = span.end
    return "".join([*pieces, text[end:]])


def _blank_within(text: str, spans: Sequence[Span], places: Sequence[Place]) -> str:
    """The text with what both the spans and the places cover made neutral, its length unchanged."""
    letters = list(text)
    for _, start, end in places:
        for span in spans:
            low, high = max(start, span.start), min(end, span.end)
            letters[low:high] = _NEUTRAL * max(0, high - low)
    return "".join(letters)
