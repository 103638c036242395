"""What runs next. Policy only: no tensors, no clocks of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

MIN_CHUNK_TOKENS = 32


class Schedulable(Protocol):
    """What the scheduler sees of a running generation."""

    @property
    def unfed_tokens(self) -> int:
        """Tokens still to be fed; exactly 1 while decoding."""

    @property
    def kv_tokens(self) -> int:
        """Tokens its KV holds now."""

    @property
    def is_decoding(self) -> bool: ...


S = TypeVar("S", bound=Schedulable)


@dataclass(frozen=True, slots=True)
class Slot(Generic[S]):
    """`tokens` of `sequence` belong to the next forward."""

    sequence: S
    tokens: int


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """`chunk_tokens` bounds a forward, `idle_chunk_tokens` one of idle work. While others are decoding, a prefill chunk
    is kept to about `shared_step_s`, so that their streams go on visibly."""

    chunk_tokens: int
    shared_step_s: float = 0.2
    idle_chunk_tokens: int = 128


def plan_step(
    sequences: Sequence[S], config: SchedulerConfig, estimate_s: Callable[[int, int], float]
) -> list[Slot[S]]:
    """Every decoding sequence with its one token, then one chunk of the prefill that has waited longest (`sequences`
    are in order of arrival). `estimate_s(start, end)` expects the seconds of feeding those positions.

    One prefill at a time, to its end: two that share the budget would both finish late.
    """
    slots = [Slot(s, 1) for s in sequences if s.is_decoding]
    prefill = next((s for s in sequences if not s.is_decoding), None)
    if prefill is None:
        return slots
    tokens = min(prefill.unfed_tokens, config.chunk_tokens)
    if slots:
        start = prefill.kv_tokens
        while tokens > MIN_CHUNK_TOKENS and estimate_s(start, start + tokens) > config.shared_step_s:
            tokens = max(MIN_CHUNK_TOKENS, tokens // 2)
    return [*slots, Slot(prefill, tokens)]


def plan_idle_step(idle: Sequence[S], config: SchedulerConfig) -> list[Slot[S]]:
    """The next chunk of the oldest idle work, where nothing else is to be done."""
    return [Slot(s, min(s.unfed_tokens, config.idle_chunk_tokens)) for s in idle[:1]]
