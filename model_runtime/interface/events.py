"""What the engine tells of a request, on its own thread. Imports no torch, so that the other packages may import it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from model_runtime.interface.logprobs import TokenLogprobs


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"  # the model's own stop token (which is then the last id of the answer)
    STOP_STRING = "stop_string"  # one of `SamplingParams.stop_strings`
    LENGTH = "length"  # max_new_tokens
    CONTEXT = "context"  # the context limit
    ABORTED = "aborted"  # somebody pressed stop
    FAILED = "failed"  # an error; see `Finished.error`
    READ = "read"  # a `ReadRequest`: all of it is in the KV
    PREEMPTED = "preempted"  # idle work made way for a request


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    """`fed_tokens` of the `total_tokens` of this turn have been read."""

    fed_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class TokenDelta:
    """One sampled token. `text` is what became displayable with it: "" while a character is incomplete or a stop
    string might be starting. A stop token has `text == ""`. `logprobs` only where they were asked for."""

    token_id: int
    text: str
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of every request. Times in seconds; `ttft_s` is None when no token was sampled.

    `text_tail` is text that was held back and belongs to the answer; what begins a stop string is never sent before.
    `fed_tokens` were computed in this turn before the first sampled token, `reused_tokens` came from the KV.
    `accepted_tokens` of `drafted_tokens` that prompt lookup guessed were what the model said.
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


Event = PrefillProgress | TokenDelta | Finished
Listener = Callable[[Event], None]
