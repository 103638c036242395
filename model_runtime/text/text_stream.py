"""Converts token ids to displayable text, one token at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

_UNDECODABLE = "\ufffd"
_MOST_PENDING_TOKENS = 16  # no character has that many tokens; a longer run never becomes one


@dataclass(frozen=True, slots=True)
class TextEnd:
    """The first `whole_tokens` tokens are in the text whole. `part` is the text after them: of a token (or of a few
    that make a character together) that a stop string cuts. `cut_tokens` counts these too."""

    whole_tokens: int
    part: str
    cut_tokens: int


class TextStream:
    """De-tokenises one answer. Holds back incomplete characters and text that might become a stop string."""

    def __init__(self, tokenizer: Tokenizer, stop_strings: Sequence[str], prefix_ids: Sequence[int] = ()) -> None:
        self._decoder = _Decoder(tokenizer)
        self._stop_strings = tuple(stop_strings)
        self._held = ""
        self._tokens = 0
        self._pieces: list[tuple[int, str]] = []  # each piece of text, and the tokens up to its end
        self._end: TextEnd | None = None
        self.stopped = False
        self.stop_string = ""  # the one that ended the text
        for token_id in prefix_ids:
            self._decoder.step(token_id)

    def push(self, token_id: int) -> str:
        """The text that became displayable with this token; sets `stopped` when a stop string is complete."""
        piece = self._decoder.step(token_id)
        self._tokens += 1
        if piece:
            self._pieces.append((self._tokens, piece))
        text = self._held + piece
        ends = [(place, stop) for stop in self._stop_strings if (place := text.find(stop)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            end, self.stop_string = min(ends)
            self._end = self._cut(len(text) - end)
            return text[:end]
        keep = max((_overlap(text, stop) for stop in self._stop_strings), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    @property
    def end(self) -> TextEnd:
        """Where the text ends among the pushed tokens."""
        return self._end or TextEnd(self._tokens, "", self._tokens)

    def _cut(self, chars: int) -> TextEnd:
        """Where the text without its last `chars` characters ends."""
        while chars:
            tokens, piece = self._pieces.pop()
            if len(piece) > chars:
                return TextEnd(self._shown_tokens, piece[:-chars], tokens)
            chars -= len(piece)
        return TextEnd(self._shown_tokens, "", self._shown_tokens)

    @property
    def _shown_tokens(self) -> int:
        return self._pieces[-1][0] if self._pieces else 0

    def tail(self) -> str:
        """The text that was held back and belongs to the answer after all. An incomplete character is dropped."""
        held, self._held = self._held, ""
        return held


class _Decoder:
    """The text that each token adds: what the ids after the last complete piece of text add to it.

    `tokenizers.decoders.DecodeStream` does the same, but raises when a later token changes an earlier piece: a
    byte-fallback decoder turns a whole run of bytes either into text or into one mark per undecodable byte. Here a
    piece stays as it was shown, and the text continues after it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._shown: list[int] = []  # the ids of the last piece that was shown
        self._shown_text = ""
        self._pending: list[int] = []

    def step(self, token_id: int) -> str:
        """Adds a token and returns the text that is complete now."""
        self._pending.append(token_id)
        whole = self._decode([*self._shown, *self._pending])
        is_patient = len(self._pending) < _MOST_PENDING_TOKENS
        if whole.endswith(_UNDECODABLE) and is_patient:
            return ""
        if whole.startswith(self._shown_text):
            text = whole[len(self._shown_text) :]
        else:
            text = self._decode(self._pending)
            if text.endswith(_UNDECODABLE) and is_patient:
                return ""
        if text:
            self._shown = self._pending
            self._shown_text = self._decode(self._shown)
        if text or not is_patient:
            self._pending = []
        return text

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))


def _overlap(text: str, stop: str) -> int:
    """The length of the longest suffix of `text` that is a proper prefix of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
