"""How text becomes token ids: what the rest of the program sees of a chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from model_runtime.interface.chat import ToolCall, UserInput


class TurnTemplate(Protocol):
    """Text to token ids through the model's own chat template. Control tokens typed by a person stay text,
    marked special or not.

    Every method is thread-safe. `system_prompt` "" means the template's own default. `tools` are JSON texts, a function
    each. Raises `TemplateRefused` where the model's template has no place for such messages.
    """

    @property
    def takes_tools(self) -> bool:
        """Whether the template shows tools to the model, and its calls can be told from text."""

    def first_turn(self, system_prompt: str, user: UserInput, tools: Sequence[str] = ()) -> tuple[int, ...]:
        """Ids of a conversation's beginning: system prompt, first user message, generation prompt."""

    def next_turn(self, answer_ended_with_stop_token: bool, user: UserInput) -> tuple[int, ...]:
        """Ids a later turn adds after the answer's own ids: closing glue, user message, generation prompt."""

    def calls_in(self, answer_text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """(content, calls without ids) of a finished answer; the whole text and no calls where it is not a call."""

    def content_chars(self, growing_text: str) -> int:
        """How much of an answer that still grows is content whatever follows: where a call might begin, it ends."""

    def with_calls(self, text: str, calls: Sequence[ToolCall]) -> str:
        """The text of an answer that makes these calls: what `calls_in` reads."""

    def unstable_tokens(self, user_text: str) -> int:
        """How many ids at the end of a turn that ends with `user_text` may be others once more of it is typed: its last
        word and the generation prompt. An estimate: what was fed too early is cropped by the engine."""

    def answer(self, text: str) -> tuple[int, ...]:
        """Ids of an answer's text without any stop token: only for a ledger written by another tokenizer."""

    @property
    def rewrites_history(self) -> str | None:
        """None when a later turn only appends; else a sentence why not (then use `whole`)."""

    def whole(self, system_prompt: str, turns: Sequence[tuple[str, str]], tools: Sequence[str] = ()) -> tuple[int, ...]:
        """Ids of a whole conversation, rendered at once, with generation prompt. `turns` are (role, text) pairs, the
        last not an assistant's. Only where history is rewritten or the tokenizer changed."""

    def count(self, text: str) -> int:
        """Tokens of a text alone."""

    def least_tokens(self, text: str) -> int:
        """A lower bound of `count`, found at once: what is too long by it need not be tokenised. 0 promises nothing."""

    def plain(self, token_ids: Sequence[int]) -> str:
        """The displayable text of ids, control tokens left out."""
