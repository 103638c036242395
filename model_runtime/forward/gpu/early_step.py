"""A decode step that was started before the host knew its tokens.

Between two steps the host has work of its own: it reads the picked ids, converts them to text, calls listeners and
plans. The device does not wait for that: it starts the next step with ids that never left it, and when the host asks
for that step, its logits are already being computed. If the host asks for something else (an answer has ended, a
request has arrived), the result is dropped: the row that it appended is beyond the length of its KV.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from model_runtime.forward.arena.arena import ArenaKV
from model_runtime.forward.picked_ids import PickedIds


@dataclass(frozen=True, slots=True)
class _Place:
    """The state of a KV. Equal states mean that its rows so far are unchanged."""

    kv: int
    losses: int
    span_start: int
    length_tokens: int

    @classmethod
    def of(cls, kv: ArenaKV) -> _Place:
        return cls(id(kv), kv.losses, kv.span_start, kv.length_tokens)


class EarlyStep:
    """`picked_ids` are the ids fed to each of `kvs`, `logits (len(kvs), vocabulary)` the result."""

    def __init__(self, kvs: Sequence[ArenaKV], picked_ids: PickedIds, logits: torch.Tensor) -> None:
        self._kvs = tuple(kvs)  # kept alive, so that no other KV gets the same id()
        self._places = [_Place.of(kv) for kv in kvs]
        self._picked_ids = picked_ids
        self._logits = logits

    def logits_for(self, feeds: Sequence[tuple[ArenaKV, int]]) -> torch.Tensor | None:
        """The logits for these KVs and next tokens, in this order; None if one of them was not computed."""
        fed = zip(self._places, self._picked_ids.on_host, strict=True)
        rows = {place_and_id: row for row, place_and_id in enumerate(fed)}
        wanted = [rows.get((_Place.of(kv), token_id), -1) for kv, token_id in feeds]
        if -1 in wanted:
            return None
        if wanted == list(range(len(rows))):
            return self._logits
        return self._logits[torch.tensor(wanted, device=self._logits.device)]
