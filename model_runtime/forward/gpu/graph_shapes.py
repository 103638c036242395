"""The sizes to which steps are padded, so that a few recordings serve all of them.

A recording has a fixed number of rows and logits and a bound on the longest keys. A decode step is padded with
sequences that use only the arena's padding row; a short turn with rows in front of its own, which attend to existing
keys and are written to the padding row. Padding costs time and changes no result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from model_runtime.forward.arena.pieces import padded_pieces, window_for
from model_runtime.forward.arena.step_inputs import StepRows
from model_runtime.forward.few_rows.kernels import MOST_ROWS

BATCHES = (1, 2, 4, 8, 16, 32, 64)
TURN_ROWS = (8, 16, 32, MOST_ROWS)
SHORTEST_KEYS = 128


@dataclass(frozen=True, slots=True)
class DecodeShape:
    """One row, and its logits, for each of `batch` sequences."""

    batch: int
    max_k: int

    @classmethod
    def of(cls, rows: StepRows) -> DecodeShape | None:
        """The shape of a step; None if it is not a decode step, or has more sequences than are recorded."""
        batch = len(rows.token_ids)
        if rows.max_q > 1 or len(rows.logit_rows) < batch or batch > BATCHES[-1]:
            return None
        return cls(_at_least(batch, BATCHES), _key_bound(rows.max_k))

    @property
    def repeats(self) -> bool:
        """Whether the next step will most likely have the same shape."""
        return True

    def padded(self, rows: StepRows, padding_row: int) -> StepRows:
        """The same step with `batch` sequences; the added ones read and write the padding row."""
        more = self.batch - len(rows.token_ids)
        padding = (padding_row,) * more
        return StepRows(
            (*rows.token_ids, *(0,) * more),
            (*rows.positions, *(0,) * more),
            (*rows.slots, *padding),
            tuple(range(self.batch)),
            tuple(range(self.batch + 1)),
            (*rows.begins_k[:-1], *padding, padding_row),
            (*rows.used_k, *(1,) * more),
            1,
            self.max_k,
        )

    def own_logits(self, count: int) -> slice:
        """Where the logits of the step's own rows are."""
        return slice(0, count)


@dataclass(frozen=True, slots=True)
class TurnShape:
    """`rows` rows of one sequence, and the logits of the last `logit_rows` of them: one, or all. Attention is cut into
    pieces of `window` keys unless that is None."""

    rows: int
    logit_rows: int
    max_k: int
    window: int | None

    @classmethod
    def of(cls, rows: StepRows, heads: int, processors: int) -> TurnShape | None:
        """The shape of a step; None for several sequences and for too many rows."""
        tokens = len(rows.token_ids)
        if len(rows.used_k) > 1 or tokens > MOST_ROWS:
            return None
        padded, max_k = _at_least(tokens, TURN_ROWS), _key_bound(rows.max_k)
        # The window that suits the shortest keys of this shape: the longest keys then get more pieces than needed.
        window = window_for((max_k // 2,), heads, processors)
        return cls(padded, padded if len(rows.logit_rows) > 1 else 1, max_k, window)

    @property
    def repeats(self) -> bool:
        """Drafts are checked step after step; a turn is read once."""
        return self.logit_rows > 1

    def padded(self, rows: StepRows, padding_row: int) -> StepRows:
        """The same step with `rows` rows, the added ones in front."""
        more = self.rows - len(rows.token_ids)
        step = StepRows(
            (*(0,) * more, *rows.token_ids),
            (*(max(0, rows.positions[0] - more + place) for place in range(more)), *rows.positions),
            (*(padding_row,) * more, *rows.slots),
            tuple(range(self.rows - self.logit_rows, self.rows)),
            (0, self.rows),
            (rows.begins_k[0], padding_row),
            rows.used_k,
            self.rows,
            self.max_k,
        )
        if self.window is None:
            return step
        cut_up = step.in_pieces(self.window)
        assert cut_up.pieces is not None
        return replace(cut_up, pieces=padded_pieces(cut_up.pieces, -(-self.max_k // self.window), padding_row))

    def own_logits(self, count: int) -> slice:
        """Where the logits of the step's own rows are."""
        return slice(self.logit_rows - count, self.logit_rows)


StepShape = DecodeShape | TurnShape


def padding_step(shape: StepShape, padding_row: int) -> StepRows:
    """A step of this shape that uses only the padding row and changes no conversation."""
    row = StepRows((0,), (0,), (padding_row,), (0,), (0, 1), (padding_row, padding_row), (1,), 1, 1)
    return shape.padded(row, padding_row)


def _at_least(count: int, sizes: tuple[int, ...]) -> int:
    return next(size for size in sizes if size >= count)


def _key_bound(max_k: int) -> int:
    return max(SHORTEST_KEYS, 1 << (max_k - 1).bit_length())
