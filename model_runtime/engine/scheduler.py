"""Decides what runs next. Policy only: no tensors, no clocks of its own."""

from __future__ import annotations

import bisect
import math
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

    @property
    def fairness_key(self) -> str:
        """Prompts with the same key wait for each other; keys take turns."""


S = TypeVar("S", bound=Schedulable)


@dataclass(frozen=True, slots=True)
class Scheduled(Generic[S]):
    """The next `tokens` ids of `sequence` belong to the next forward."""

    sequence: S
    tokens: int


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """`chunk_tokens` bounds the prefill tokens of a forward, `idle_chunk_tokens` those of idle work. While others are
    decoding, a prefill chunk is limited to about `shared_step_s` seconds, so that their streams do not stall."""

    chunk_tokens: int
    idle_chunk_tokens: int = 128
    shared_step_s: float = 0.2


class Scheduler:
    """Plans steps. It remembers whose prompt was read last, so that waiting prompts take turns."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self._chunks = 0
        self._last_chunk: dict[str, int] = {}  # by fairness key

    def plan(self, sequences: Sequence[S], estimate_s: Callable[[int, int], float]) -> list[Scheduled[S]]:
        """Plans every decoding sequence with its one token, then a chunk of one prefill, then whole prompts that still
        fit. `sequences` are in order of arrival; `estimate_s(start, end)` returns the expected seconds of reading those
        positions.

        Fairness keys take turns chunk by chunk, so a short message waits for at most one chunk of another user's long
        one. Within a key the first prompt is read to its end: two that alternate would both finish late.
        """
        slots = [Scheduled(s, 1) for s in sequences if s.is_decoding]
        left_s = self.config.shared_step_s if slots else math.inf
        left_tokens = self.config.chunk_tokens
        is_first = True
        for prefill in self._in_turn([s for s in sequences if not s.is_decoding]):
            start = prefill.kv_tokens
            tokens = min(prefill.unfed_tokens, left_tokens)
            if is_first:
                tokens = self._within(left_s, start, tokens, estimate_s)
            elif tokens < prefill.unfed_tokens or estimate_s(start, start + tokens) > left_s:
                continue
            slots.append(Scheduled(prefill, tokens))
            self._chunks += 1
            self._last_chunk[prefill.fairness_key] = self._chunks
            left_tokens -= tokens
            left_s -= estimate_s(start, start + tokens)
            is_first = False
        return slots

    def plan_idle(self, idle: Sequence[S]) -> list[Scheduled[S]]:
        """The next chunk of the oldest idle work, for when nothing else is running."""
        return [Scheduled(s, min(s.unfed_tokens, self.config.idle_chunk_tokens)) for s in idle[:1]]

    def _in_turn(self, prefills: list[S]) -> list[S]:
        """The first prompt of each key, least recently served key first; then the rest."""
        if not prefills:
            self._last_chunk.clear()
        oldest_first = sorted(prefills, key=lambda s: self._last_chunk.get(s.fairness_key, 0))  # stable: by arrival
        firsts = list({s.fairness_key: s for s in reversed(oldest_first)}.values())[::-1]
        return [*firsts, *(s for s in oldest_first if s not in firsts)]

    @staticmethod
    def _within(limit_s: float, start: int, tokens: int, estimate_s: Callable[[int, int], float]) -> int:
        """The largest chunk that is expected to fit, in multiples of `MIN_CHUNK_TOKENS`; at least one of them, so that
        reading always makes progress."""
        if tokens <= MIN_CHUNK_TOKENS or estimate_s(start, start + tokens) <= limit_s:
            return tokens
        sizes = range(MIN_CHUNK_TOKENS, tokens, MIN_CHUNK_TOKENS)
        fitting = bisect.bisect_right(sizes, limit_s, key=lambda size: estimate_s(start, start + size))
        return sizes[max(0, fitting - 1)]
