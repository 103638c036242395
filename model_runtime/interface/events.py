"""The events that the engine emits for a request, on its own thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"  # the model's own stop token, which is then the last id of the answer
    STOP_STRING = "stop_string"  # one of `SamplingParams.stop_strings`
    LENGTH = "length"  # max_new_tokens
    CONTEXT = "context"  # the context limit
    ABORTED = "aborted"  # it was stopped by the user or by shutdown
    FAILED = "failed"  # an error; see `Finished.error`
    READ = "read"  # a `ReadRequest` is complete: all ids are in the KV
    PREEMPTED = "preempted"  # idle work gave way to a request


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    """`fed_tokens` of the turn's `total_tokens` have been read."""

    fed_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token as text (U+FFFD for part of a character) and its natural log-probability."""

    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities of the sampled token and of the most likely ones, before temperature and penalties."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class TokenDelta:
    """One sampled token. `text` is what became displayable with it: "" while a character is incomplete or a stop
    string might be starting. A stop token has `text == ""`. `logprobs` is None unless the request asked for them."""

    token_id: int
    text: str
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of every request. Times in seconds; `ttft_s` is None when no token was sampled.

    `text_tail` is text that was held back because it might have started a stop string, and belongs to the answer.
    `fed_tokens` were computed in this turn before the first sampled token; `reused_tokens` came from the KV.
    Prompt lookup drafted `drafted_tokens`, of which the model confirmed `accepted_tokens`.
    After a stop string the last `cut_tokens` of the `sampled_tokens` do not belong to the answer: they spell the stop
    string. The answer has `part_ids` in their place, the text of the first of them up to the stop string.
    `is_rope_changed`: rows that the KV held had the rotary frequencies of another length and were dropped before the
    first token; `reread_tokens` were fed once more for the same reason while the answer grew.
    """

    reason: FinishReason
    fed_tokens: int
    reused_tokens: int
    sampled_tokens: int
    ttft_s: float | None
    prefill_s: float
    decode_s: float
    text_tail: str = ""
    error: str | None = None
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    cut_tokens: int = 0
    part_ids: tuple[int, ...] = ()
    is_rope_changed: bool = False
    reread_tokens: int = 0


Event = PrefillProgress | TokenDelta | Finished
Listener = Callable[[Event], None]
