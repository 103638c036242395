"""The inputs of a step's kernels, sent to the device in one copy: token ids, positions, the arena rows to write, the
rows whose logits are wanted, and where each sequence's queries and keys are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from model_runtime.forward.arena.arena import Arena, ArenaKV
from model_runtime.forward.arena.pieces import Pieces, PieceTable, cut
from model_runtime.forward.arena.varlen import SpanTable


@dataclass(frozen=True, slots=True)
class StepRows:
    """A step in numbers: one `token_ids`, `positions` and `slots` entry per row, the wanted `logit_rows`, and the
    begins and lengths of every sequence's queries and keys; `pieces` if its attention is cut into pieces."""

    token_ids: tuple[int, ...]
    positions: tuple[int, ...]
    slots: tuple[int, ...]
    logit_rows: tuple[int, ...]
    begins_q: tuple[int, ...]
    begins_k: tuple[int, ...]
    used_k: tuple[int, ...]
    max_q: int
    max_k: int
    pieces: Pieces | None = None

    @property
    def numbers(self) -> list[int]:
        """All numbers in one list; `StepUpload.tensors` splits it again."""
        flat = (self.token_ids, self.positions, self.slots, self.logit_rows, self.begins_q, self.begins_k, self.used_k)
        return [*(number for part in flat for number in part), *(self.pieces.numbers if self.pieces else ())]

    def in_pieces(self, window: int) -> StepRows:
        """The same step with its attention cut into pieces of `window` keys."""
        return replace(self, pieces=cut(self.begins_q, self.begins_k, self.used_k, window))


@dataclass(frozen=True, slots=True)
class StepTensors:
    """The same on the device: int64 `token_ids (T)`, `positions (T)`, `slots (T)`, `logit_rows (R)`, and the table."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    logit_rows: torch.Tensor
    table: SpanTable


def rows_for(arena: Arena, feeds: Sequence[tuple[ArenaKV, Sequence[int], int]]) -> StepRows:
    """The rows of a packed step, in order. Each feed is a KV with room for its tokens, the token ids, and how many of
    the last tokens' logits are wanted."""
    ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    logit_rows: list[int] = []
    begins_q, begins_k, used_k = [0], [], []
    for kv, token_ids, wanted in feeds:
        past, tokens = kv.length_tokens, len(token_ids)
        ids.extend(token_ids)
        positions.extend(range(past, past + tokens))
        slots.extend(range(kv.span_start + past, kv.span_start + past + tokens))
        logit_rows.extend(range(len(ids) - wanted, len(ids)))
        begins_q.append(len(ids))
        begins_k.append(kv.span_start)
        used_k.append(past + tokens)
    longest = max(after - before for before, after in pairwise(begins_q))
    # The last begin is never read: lengths come from `used_k`.
    begins_k.append(arena.padding_row)
    return StepRows(
        tuple(ids),
        tuple(positions),
        tuple(slots),
        tuple(logit_rows),
        tuple(begins_q),
        tuple(begins_k),
        tuple(used_k),
        longest,
        max(used_k),
    )


class StepUpload:
    """One device buffer of int32 numbers, filled by one asynchronous copy from pinned memory."""

    def __init__(self, device: torch.device, numbers: int) -> None:
        self._is_cuda = device.type == "cuda"
        self._pinned = torch.empty(numbers, dtype=torch.int32, pin_memory=self._is_cuda)
        self.buffer = torch.zeros(numbers, dtype=torch.int32, device=device)
        self._sent = torch.cuda.Event() if self._is_cuda else None  # type: ignore[no-untyped-call]

    def send(self, rows: StepRows) -> None:
        """Fills the buffer. The host waits only if the previous copy is still running."""
        numbers = rows.numbers
        if len(numbers) > len(self.buffer):
            raise ValueError(f"a step of {len(numbers)} numbers does not fit into {len(self.buffer)}")
        if self._sent is not None:
            self._sent.synchronize()
        self._pinned[: len(numbers)] = torch.tensor(numbers, dtype=torch.int32)
        self.buffer[: len(numbers)].copy_(self._pinned[: len(numbers)], non_blocking=True)
        if self._sent is not None:
            self._sent.record()

    def tensors(self, like: StepRows) -> StepTensors:
        """The buffer's numbers as tensors, for a step with the sizes and bounds of `like`. Reads nothing on the host,
        so that it can be recorded in a graph."""
        tokens, logit_rows, sequences = len(like.token_ids), len(like.logit_rows), len(like.used_k)
        wide = self.buffer[: 3 * tokens + logit_rows].long()
        ids, positions, slots, keep = torch.split(wide, [tokens, tokens, tokens, logit_rows])
        tables = self.buffer[3 * tokens + logit_rows :]
        begins_q, begins_k, used_k = torch.split(tables[: 3 * sequences + 2], [sequences + 1, sequences + 1, sequences])
        pieces = None
        if like.pieces is not None:
            numbers = tables[3 * sequences + 2 :][: len(like.pieces.numbers)]
            pieces = PieceTable.of(like.pieces, tokens, numbers)
        table = SpanTable(begins_q, begins_k, used_k, like.max_q, like.max_k, pieces)
        return StepTensors(ids, positions, slots, keep, table)
