"""Token ids to displayable text, one token at a time."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class TextStream:
    """De-tokenises one answer. Incomplete characters are held back, and so is whatever might become a stop string."""

    def __init__(self, tokenizer: Tokenizer, stop_strings: Sequence[str], prefix_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._stop_strings = tuple(stop_strings)
        self._held = ""
        self.stopped = False
        for token_id in prefix_ids:
            self._decoder.step(tokenizer, token_id)

    def push(self, token_id: int) -> str:
        """The text that became displayable with this token; sets `stopped` when a stop string is complete."""
        text = self._held + (self._decoder.step(self._tokenizer, token_id) or "")
        ends = [place for place in (text.find(stop) for stop in self._stop_strings) if place >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)]
        keep = max((_overlap(text, stop) for stop in self._stop_strings), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def tail(self) -> str:
        """What was held back and belongs to the answer after all. Half a character never does."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
