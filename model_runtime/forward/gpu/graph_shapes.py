"""Sizes that steps are made up to, so that a few recordings serve all of them.

A recording has fixed sizes: how many rows, how many logits, how long the longest keys may be. A decode step is made up
with sequences that belong to nobody; a short turn with rows in front of its own, which look at keys that are there
anyway and are written to the arena's row that belongs to nobody. What is added costs time and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from model_runtime.forward.arena.pieces import filled_up, window_for
from model_runtime.forward.arena.step_inputs import StepRows
from model_runtime.forward.few_rows.kernels import MOST_ROWS

BATCHES = (1, 2, 4, 8, 16, 32, 64)
TURN_ROWS = (8, 16, 32, MOST_ROWS)
SHORTEST_KEYS = 128


@dataclass(frozen=True, slots=True)
class DecodeShape:
    """A row, and its logits, of each of `batch` sequences."""

    batch: int
    max_k: int

    @classmethod
    def of(cls, rows: StepRows) -> DecodeShape | None:
        """None for what is no decode step, and for more sequences than are ever recorded."""
        batch = len(rows.token_ids)
        if rows.max_q > 1 or len(rows.logit_rows) < batch or batch > BATCHES[-1]:
            return None
        return cls(_at_least(batch, BATCHES), _key_bound(rows.max_k))

    @property
    def repeats(self) -> bool:
        """Whether the step behind it will most likely be another one like it."""
        return True

    def made_up(self, rows: StepRows, nobodys_row: int) -> StepRows:
        """The same step with `batch` sequences; the others read and write the row that belongs to nobody."""
        more = self.batch - len(rows.token_ids)
        nobody = (nobodys_row,) * more
        return StepRows(
            (*rows.token_ids, *(0,) * more),
            (*rows.positions, *(0,) * more),
            (*rows.slots, *nobody),
            tuple(range(self.batch)),
            tuple(range(self.batch + 1)),
            (*rows.begins_k[:-1], *nobody, nobodys_row),
            (*rows.used_k, *(1,) * more),
            1,
            self.max_k,
        )

    def own_logits(self, count: int) -> slice:
        """Where the logits of the step's own rows are."""
        return slice(0, count)


@dataclass(frozen=True, slots=True)
class TurnShape:
    """`rows` of one sequence, attended to in pieces of `window` keys where there is one, and the logits of the last
    `logit_rows` of them: one, or all."""

    rows: int
    logit_rows: int
    max_k: int
    window: int | None

    @classmethod
    def of(cls, rows: StepRows, heads: int, processors: int) -> TurnShape | None:
        """None for several sequences, and for more than few rows."""
        tokens = len(rows.token_ids)
        if len(rows.used_k) > 1 or tokens > MOST_ROWS:
            return None
        made_up, max_k = _at_least(tokens, TURN_ROWS), _key_bound(rows.max_k)
        # As many pieces as its shortest keys would want: the longest then have more than they need.
        window = window_for((max_k // 2,), heads, processors)
        return cls(made_up, made_up if len(rows.logit_rows) > 1 else 1, max_k, window)

    @property
    def repeats(self) -> bool:
        """Guesses are checked step after step, a turn is read once."""
        return self.logit_rows > 1

    def made_up(self, rows: StepRows, nobodys_row: int) -> StepRows:
        """The same step with `rows` rows, the added ones in front."""
        more = self.rows - len(rows.token_ids)
        step = StepRows(
            (*(0,) * more, *rows.token_ids),
            (*(max(0, rows.positions[0] - more + place) for place in range(more)), *rows.positions),
            (*(nobodys_row,) * more, *rows.slots),
            tuple(range(self.rows - self.logit_rows, self.rows)),
            (0, self.rows),
            (rows.begins_k[0], nobodys_row),
            rows.used_k,
            self.rows,
            self.max_k,
        )
        if self.window is None:
            return step
        cut_up = step.in_pieces(self.window)
        assert cut_up.pieces is not None
        return replace(cut_up, pieces=filled_up(cut_up.pieces, -(-self.max_k // self.window), nobodys_row))

    def own_logits(self, count: int) -> slice:
        """Where the logits of the step's own rows are."""
        return slice(self.logit_rows - count, self.logit_rows)


StepShape = DecodeShape | TurnShape


def nobodys(shape: StepShape, nobodys_row: int) -> StepRows:
    """A step of this shape that changes no conversation."""
    row = StepRows((0,), (0,), (nobodys_row,), (0,), (0, 1), (nobodys_row, nobodys_row), (1,), 1, 1)
    return shape.made_up(row, nobodys_row)


def _at_least(count: int, sizes: tuple[int, ...]) -> int:
    return next(size for size in sizes if size >= count)


def _key_bound(max_k: int) -> int:
    return max(SHORTEST_KEYS, 1 << (max_k - 1).bit_length())
