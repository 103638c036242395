"""Sampling parameters of one answer."""

from __future__ import annotations

from dataclasses import dataclass, replace

from model_runtime.interface.grammar import Grammar
from model_runtime.interface.require import require

MOST_NAMED_TOKENS = 1024
SEEDS = 2**63


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. `temperature == 0` is greedy; `top_k == 0`, `top_p == 1`, `min_p == 0` are off.

    For every token that this answer already contains, `presence_penalty` is subtracted once from its logit and
    `frequency_penalty` once per occurrence; `repetition_penalty` is over the whole conversation. With a
    `penalty_window` all three are over that many last tokens, the prompt's among them; 0: over none. `top_logprobs`
    requests the log-probability of every sampled token and of that many most likely tokens; None requests none.

    `logit_bias` are `(token id, what is added to its logit)`. Of `stop_token_ids` each ends the answer and does not
    belong to it. The model's own stop tokens and these are not drawn before the answer has `min_new_tokens`, and the
    model's own never with `ignore_eos`. A stop string ends an answer of any length. With a `grammar` only tokens are
    drawn that keep to it, and a stop token once the answer is complete.

    Raises `ValueError` with a message for the user when a value is out of range.
    """

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 50
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 512
    seed: int | None = None
    stop_strings: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    top_logprobs: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    min_new_tokens: int = 0
    ignore_eos: bool = False
    grammar: Grammar | None = None
    penalty_window: int | None = None

    def __post_init__(self) -> None:
        require(0.0 <= self.temperature <= 5.0, f"Temperature must be between 0 and 5, not {self.temperature}.")
        require(0.0 < self.top_p <= 1.0, f"Top-p must be above 0 and at most 1, not {self.top_p}.")
        require(0 <= self.top_k <= 1_000_000, f"Top-k must be 0 (off) or a positive whole number, not {self.top_k}.")
        require(0.0 <= self.min_p <= 1.0, f"Min-p must be between 0 and 1, not {self.min_p}.")
        require(
            0.1 <= self.repetition_penalty <= 10.0,
            f"Repetition penalty must be between 0.1 and 10, not {self.repetition_penalty}.",
        )
        require(
            1 <= self.max_new_tokens <= 1_000_000,
            f"Max new tokens must be a positive whole number, not {self.max_new_tokens}.",
        )
        require(
            self.seed is None or 0 <= self.seed < SEEDS,
            f"Seed must be empty or a whole number from 0 to 2^63 - 1, not {self.seed}.",
        )
        require(len(self.stop_strings) <= 16, f"At most 16 stop strings are allowed, not {len(self.stop_strings)}.")
        require(all(self.stop_strings), "A stop string must not be empty.")
        for name, penalty in (("Presence", self.presence_penalty), ("Frequency", self.frequency_penalty)):
            require(-2.0 <= penalty <= 2.0, f"{name} penalty must be between -2 and 2, not {penalty}.")
        window = self.penalty_window
        require(window is None or window >= 0, f"Penalties cannot be over {window} tokens.")
        require(
            self.top_logprobs is None or 0 <= self.top_logprobs <= 20,
            f"Top logprobs must be between 0 and 20, not {self.top_logprobs}.",
        )
        require(
            0 <= self.min_new_tokens <= self.max_new_tokens,
            f"The answer cannot have at least {self.min_new_tokens:,} and at most {self.max_new_tokens:,} tokens.",
        )
        require(
            all(-100.0 <= bias <= 100.0 for _, bias in self.logit_bias), "A logit bias must be between -100 and 100."
        )
        most = MOST_NAMED_TOKENS
        require(len(self.logit_bias) <= most, f"At most {most:,} tokens may have a logit bias.")
        require(len(self.stop_token_ids) <= most, f"At most {most:,} stop token ids are allowed.")
        require(all(token_id >= 0 for token_id in self.named_token_ids), "A token id must not be negative.")

        is_free = not (self.min_new_tokens or self.ignore_eos)
        require(self.grammar is None or is_free, "A format and a least length of an answer exclude each other.")

    @property
    def named_token_ids(self) -> tuple[int, ...]:
        """The ids that these settings name. The vocabulary must have them."""
        return (*(token_id for token_id, _ in self.logit_bias), *self.stop_token_ids)

    @property
    def has_penalties(self) -> bool:
        return self.repetition_penalty != 1.0 or bool(self.presence_penalty or self.frequency_penalty)

    def lasting(self, defaults: SamplingParams) -> SamplingParams:
        """What holds for a conversation's later answers too. Limits, stops and formats are those of one answer: they
        are taken from `defaults`."""
        return replace(
            defaults,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            penalty_window=self.penalty_window,
            seed=self.seed,
        )
