"""Draws answers with a reasoning model's thoughts apart from what it says."""

from __future__ import annotations

from dataclasses import dataclass

from app.page.markdown.growing import Answers, DrawnBlock
from sessions.ledger import thoughts as reasoning
from sessions.ledger.thoughts import Parts


@dataclass(frozen=True, slots=True)
class DrawnAnswer:
    """The blocks of an answer in order: the first `thought_blocks` are thoughts, which have no end yet if
    `is_thinking`. `said` is the text without them, and `thought_share` their share of the whole text."""

    blocks: tuple[DrawnBlock, ...]
    said: str
    thought_blocks: int = 0
    is_thinking: bool = False
    thought_share: float = 0.0

    @property
    def has_thoughts(self) -> bool:
        return self.thought_blocks > 0 or self.is_thinking


class AnswerDrawer:
    """Caches what it drew. `prompt_end` are the last words of every prompt. Any thread."""

    def __init__(self, prompt_end: str = "") -> None:
        self._answers = Answers()
        self._prompt_end = prompt_end

    def growing(self, name: str, text: str) -> DrawnAnswer:
        """The answer `name`, which is being written, as far as it is."""
        parts = reasoning.split(text, self._prompt_end, is_growing=True)
        thoughts = self._answers.growing(f"{name} thoughts", parts.thoughts) if parts.thoughts else ()
        return _drawn(text, parts, thoughts, self._answers.growing(name, parts.answer))

    def whole(self, text: str, is_complete: bool = True) -> DrawnAnswer:
        """An answer that is not written any more. One that is not complete may have stopped in its thoughts."""
        parts = reasoning.split(text, "" if is_complete else self._prompt_end)
        thoughts = self._answers.whole(parts.thoughts) if parts.thoughts else ()
        return _drawn(text, parts, thoughts, self._answers.whole(parts.answer))


def _drawn(text: str, parts: Parts, thoughts: tuple[DrawnBlock, ...], answer: tuple[DrawnBlock, ...]) -> DrawnAnswer:
    share = 1 - len(parts.answer) / len(text) if parts.thoughts else 0.0
    return DrawnAnswer(thoughts + answer, parts.answer, len(thoughts), parts.is_open, share)
