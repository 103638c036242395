"""Chat messages as text, and the protocol that turns them into token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the model wants to call. `arguments` is JSON text exactly as the model wrote it."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of any role. `tool_calls` belong to an assistant's message; `tool_call_id` names the call that a
    tool's message answers."""

    role: str  # "system" | "developer" | "user" | "assistant" | "tool"
    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""


UserInput = str | tuple[ChatMessage, ...]  # the input between two answers: usually one user message, given as text


class TurnTemplate(Protocol):
    """Turns text into token ids with the model's own chat template. Control tokens that a user types stay plain text,
    whether or not the tokenizer marks them as special.

    Every method is thread-safe. `system_prompt` "" means the template's own default. `tools` are JSON texts, one
    function each. Raises `TemplateRefused` when the model's template cannot represent the messages.
    """

    @property
    def takes_tools(self) -> bool:
        """Whether the template shows tools to the model and the calls in an answer can be parsed."""

    def first_turn(self, system_prompt: str, user: UserInput, tools: Sequence[str] = ()) -> tuple[int, ...]:
        """Ids of the start of a conversation: system prompt, first user message, generation prompt."""

    def next_turn(
        self,
        answer_ended_with_stop_token: bool,
        user: UserInput,
        system_prompt: str = "",
        tools: Sequence[str] = (),
    ) -> tuple[int, ...]:
        """Ids that a later turn adds after the answer's own ids: closing markup, user message, generation prompt.
        `system_prompt` and `tools` are those of the whole conversation: a template may read them in every turn."""

    def calls_in(self, answer_text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """(content, calls without ids) of a finished answer; the whole text and no calls when it contains none."""

    def content_chars(self, growing_text: str) -> int:
        """How many characters of an unfinished answer are content, whatever follows: up to where a call might begin."""

    def with_calls(self, text: str, calls: Sequence[ToolCall]) -> str:
        """The text of an answer that makes these calls, as `calls_in` parses it."""

    def unstable_tokens(self, user_text: str) -> int:
        """How many ids at the end of a turn with `user_text` may change as the user types on: those of its last word
        and the generation prompt. An estimate: the engine crops what was fed too early."""

    def answer(self, text: str, system_prompt: str = "", tools: Sequence[str] = ()) -> tuple[int, ...]:
        """Ids of an answer's text without a stop token, in a conversation with these. Only for answers that were not
        sampled here."""

    def rewrites_history(self, system_prompt: str = "", tools: Sequence[str] = ()) -> str | None:
        """None when a later turn of a conversation with these only appends, else a sentence that says why not. Then use
        `whole`. Raises `TemplateRefused`."""

    def whole(self, system_prompt: str, turns: Sequence[ChatMessage], tools: Sequence[str] = ()) -> tuple[int, ...]:
        """Ids of a whole conversation rendered at once, generation prompt included. The last of `turns` is not the
        assistant's. Only for templates that rewrite history and after a change of tokenizer."""

    def count(self, text: str) -> int:
        """How many tokens a text has on its own."""

    def least_tokens(self, text: str) -> int:
        """A cheap lower bound of `count`: a text that is too long by this bound need not be tokenised. 0 means that no
        bound is known."""

    def plain(self, token_ids: Sequence[int]) -> str:
        """The displayable text of ids, without control tokens."""
