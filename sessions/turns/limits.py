"""Whether a turn fits, asked before anything is stored. The sentences carry the numbers."""

from __future__ import annotations

from bisect import bisect_right

from model_runtime.interface.chat import TurnTemplate
from model_runtime.interface.protocol import Engine
from sessions.config import SessionConfig
from sessions.errors import CacheFull, ContextFull
from sessions.ledger.ledger import Turn
from sessions.text import mib, tokens


class TurnLimits:
    """The model's context and the device's budget, as limits on one turn."""

    def __init__(self, engine: Engine, template: TurnTemplate, config: SessionConfig) -> None:
        self._engine = engine
        self._template = template
        self._config = config

    @property
    def context_limit_tokens(self) -> int:
        return self._engine.info.context_limit_tokens

    def promise_bytes(self, turn: Turn, max_new_tokens: int, user_text: str | None) -> int:
        """The bytes this turn's KV may grow to. Raises `ContextFull` or `CacheFull` when it can never fit."""
        excess_tokens = self._excess_tokens(len(turn.ledger))
        if excess_tokens > 0:
            raise ContextFull(self._too_long(excess_tokens, user_text))
        final_tokens = min(len(turn.ledger) + max_new_tokens, self.context_limit_tokens)
        promised_bytes = self._engine.kv_bytes(final_tokens)
        if promised_bytes > self._config.device_kv_budget_bytes:
            raise CacheFull(
                f"This turn may need {mib(promised_bytes)} of memory for {tokens(final_tokens)}, but the whole budget "
                f"is {mib(self._config.device_kv_budget_bytes)}. Lower the limit of new tokens, start a new "
                "conversation, or start the server with a larger --device-kv-budget."
            )
        return promised_bytes

    def most_new_tokens(self, ledger_tokens: int, room_bytes: int) -> int:
        """The longest answer after `ledger_tokens` that the context holds, in a KV of at most `room_bytes`. Not less
        than the shortest useful answer: `promise_bytes` refuses a turn that has no room even for that."""
        lengths = range(max(0, self.context_limit_tokens - ledger_tokens))
        fit = bisect_right(lengths, room_bytes, key=lambda more: self._engine.kv_bytes(ledger_tokens + more + 1))
        return max(fit, self._config.min_answer_tokens)

    def check_history(self, tokens_so_far: int) -> None:
        """Raises `ContextFull` when `tokens_so_far` leave no room for an answer."""
        if self._excess_tokens(tokens_so_far) > 0:
            raise ContextFull(
                f"These messages have more than {tokens(tokens_so_far)}; the model reads at most "
                f"{self.context_limit_tokens:,}. Leave some of them out."
            )

    def refuse_hopeless(self, text: str, what: str = "This message") -> None:
        """Raises `ContextFull` for a text that cannot fit however it is tokenised, before seconds are spent on
        tokenising it."""
        least = self._template.least_tokens(text)
        if least > self.context_limit_tokens:
            raise ContextFull(
                f"{what} has at least {tokens(least)}; the model reads at most {self.context_limit_tokens:,}. "
                "Shorten it."
            )

    def holds(self, final_tokens: int) -> bool:
        """Whether a KV of `final_tokens` fits the context, with room for an answer, and the budget."""
        fits_context = final_tokens + self._config.min_answer_tokens <= self.context_limit_tokens
        return fits_context and self._engine.kv_bytes(final_tokens) <= self._config.device_kv_budget_bytes

    def message_tokens(self, frame_tokens: int) -> int:
        """The longest message that fits beside `frame_tokens` of conversation and template."""
        return max(0, self.context_limit_tokens - self._config.min_answer_tokens - frame_tokens)

    def check_system_prompt(self, system_prompt: str) -> None:
        """Raises `ContextFull` when it takes more than half of the context."""
        count, fit = self._template.count(system_prompt), self.context_limit_tokens // 2
        if count > fit:
            raise ContextFull(f"The system prompt has {tokens(count)}; at most {fit:,} are accepted. Shorten it.")

    def _excess_tokens(self, ledger_tokens: int) -> int:
        return ledger_tokens + self._config.min_answer_tokens - self.context_limit_tokens

    def _too_long(self, excess_tokens: int, user_text: str | None) -> str:
        if user_text is not None:
            count = self._template.count(user_text)
            if (fit := count - excess_tokens) > 0:
                return (
                    f"This message has {tokens(count)}; with the conversation so far {fit:,} fit. "
                    "Shorten it or start a new conversation."
                )
        return (
            f"The conversation has reached the model's {self.context_limit_tokens:,}-token limit. "
            "Start a new one, or edit an earlier message."
        )
