"""What a chat template writes around the messages of a conversation that begins with a certain system prompt and tools,
and whether its later turns only append to what it wrote before.

Both can depend on the beginning: some templates write the system prompt or the tools before the last question only,
and some obey a word in the system prompt in every turn.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from model_runtime.interface.chat import ChatMessage
from model_runtime.interface.errors import TemplateRefused
from model_runtime.text.turn_ids.rendering import Renderer

ANSWER = f"kwanswer{secrets.token_hex(6)}kw"  # people cannot type it
HISTORY = (ChatMessage("user", "u"), ChatMessage("assistant", ANSWER))  # stands for what a later turn follows

_OTHER_TEXT = "Is this, with 12 words in it,\n\nanother text than the first one?"

_MOST_WORDS = 1000  # each is tried twice; published templates compare with some 50

REWRITES = "This model's chat template writes earlier turns differently once later ones follow."


@dataclass(frozen=True, slots=True)
class Frame:
    """The template's own text: `opening`, first question, `prompt`, answer, `glue`, second question, `closing`.

    `second_prompt` is what stands between first question and answer once a second question follows. `rewrites` says why
    a later turn does more than append, or is None.
    """

    opening: str
    prompt: str
    second_prompt: str
    glue: str
    closing: str
    rewrites: str | None

    @property
    def before_answer(self) -> str:
        """White space that the template writes between a generation prompt and its answer."""
        lead = self.second_prompt[len(self.prompt) :] if self.second_prompt.startswith(self.prompt) else ""
        return "" if lead.strip() else lead


def frame_of(renderer: Renderer, beginning: Sequence[ChatMessage], tools: Sequence[Any], has_thoughts: bool) -> Frame:
    """The frame of conversations that begin with these system messages and tools. `has_thoughts` says whether the
    template knows them. Raises `TemplateRefused` when the template cannot write two turns, or repeats messages."""
    first, second, third = (_turns(renderer, beginning, tools, count) for count in (1, 2, 3))
    return Frame(
        *(first[0], first[1], second[1], second[2], second[3]),
        rewrites=_rewrites(first, second, third)
        or (_strips_thoughts(renderer, beginning, tools) if has_thoughts else None),
    )


def reads_earlier_texts(renderer: Renderer, words: Collection[str]) -> str | None:
    """A sentence where a later turn depends on what was said in an earlier one: on its length, or on one of these
    words, which the template may look for. Else None."""
    first = _later_turn(renderer, "u", "")
    tried = ((said, answer) for text in (_OTHER_TEXT, *words) for said, answer in ((text, ""), ("u", text)))
    if len(words) <= _MOST_WORDS and all(_later_turn(renderer, *texts) in (None, first) for texts in tried):
        return None
    return "This model's chat template writes later turns differently, depending on what earlier ones say."


def _later_turn(renderer: Renderer, question: str, answer: str) -> str | None:
    """What follows an answer that begins with this text. None if the template refuses the texts, or leaves out what
    shows the answer's end."""
    said = ChatMessage("user", question), ChatMessage("assistant", answer + ANSWER), ChatMessage("user", "v")
    try:
        _, _, rest = renderer.written(said).partition(ANSWER)
    except TemplateRefused:
        return None
    return rest or None


def _turns(renderer: Renderer, beginning: Sequence[ChatMessage], tools: Sequence[Any], count: int) -> list[str]:
    """The template's parts around `count` user messages with answers between them."""
    messages = [ChatMessage(("user", "assistant")[n % 2], "") for n in range(2 * count - 1)]
    return renderer.parts(messages, tools, beginning)


def _rewrites(first: Sequence[str], second: Sequence[str], third: Sequence[str]) -> str | None:
    """White space between a generation prompt and its answer is no difference: the model writes its own there."""
    prompts = (first[1], second[1], third[1]), (second[3], third[3])
    if (first[0], second[0], second[2]) != (second[0], third[0], third[2]) or not all(map(_are_alike, prompts)):
        return REWRITES
    if (third[4], third[5]) != (second[2], second[3]):
        return "This model's chat template writes later turns differently from the second one."
    return None


def _strips_thoughts(renderer: Renderer, beginning: Sequence[ChatMessage], tools: Sequence[Any]) -> str | None:
    said = ("user", "u"), ("assistant", "<think>\nkept?\n</think>\n\na"), ("user", "v")
    messages = [*beginning, *(ChatMessage(role, text) for role, text in said)]
    try:
        if "kept?" in renderer.written(messages, tools):
            return None
    except TemplateRefused:
        return None
    return "This model's chat template removes the reasoning from earlier answers."


def _are_alike(texts: Sequence[str]) -> bool:
    return len({text.rstrip() for text in texts}) == 1
