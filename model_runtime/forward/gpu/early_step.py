"""A decode step that was started before the host knew its tokens.

Between two steps the host has work of its own: it reads the ids that were picked, turns them into text, tells
listeners, plans. The device does not wait for that: the next step is given to it with ids that never left it, and when
the host asks for that step, its logits are under way. If it asks for something else (an answer has ended, somebody has
come), what was computed is not looked at: the row that it appended lies behind all that its KV counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from model_runtime.forward.arena.arena import ArenaKV
from model_runtime.forward.picked_ids import PickedIds


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a KV stood: equal to where it stands now as long as the rows before its next one are the same."""

    kv: int
    losses: int
    span_start: int
    length_tokens: int

    @classmethod
    def of(cls, kv: ArenaKV) -> _Place:
        return cls(id(kv), kv.losses, kv.span_start, kv.length_tokens)


class EarlyStep:
    """`picked_ids` are the ids that each of `kvs` is fed, `logits (len(kvs), vocabulary)` what comes of it."""

    def __init__(self, kvs: Sequence[ArenaKV], picked_ids: PickedIds, logits: torch.Tensor) -> None:
        self._kvs = tuple(kvs)  # kept, so that no other KV gets the same identity
        self._places = [_Place.of(kv) for kv in kvs]
        self._picks = picked_ids
        self._logits = logits

    def logits_for(self, feeds: Sequence[tuple[ArenaKV, int]]) -> torch.Tensor | None:
        """The logits behind these KVs' next tokens, in this order; None where one of them was not computed."""
        fed = zip(self._places, self._picks.on_host, strict=True)
        rows = {place_and_id: row for row, place_and_id in enumerate(fed)}
        wanted = [rows.get((_Place.of(kv), token_id), -1) for kv, token_id in feeds]
        if -1 in wanted:
            return None
        if wanted == list(range(len(rows))):
            return self._logits
        return self._logits[torch.tensor(wanted, device=self._logits.device)]
