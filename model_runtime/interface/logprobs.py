"""How likely the tokens of an answer were."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token alone, as text (U+FFFD for a part of a character), and its natural log-probability."""

    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The sampled token among the likeliest, before temperature and penalties."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]
