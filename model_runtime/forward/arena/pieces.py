"""Cuts the attention of few query rows over long keys into pieces that a GPU's processors compute in parallel.

The variable-length kernel splits a sequence's keys only for a single query row. A short turn after a long history is
then one block per head, and the step waits for it: 490 us per layer for 32 rows on 16,384 keys of an 8B model on an
H100. Here the same rows run once per piece, each time over a sliding window of `window` keys that ends `window` keys
earlier, so that together they see every key once. The results are weighted by the pieces' sums of exponentials (Dao et
al. 2023, "Flash-Decoding").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

SHORTEST_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Pieces:
    """`rows (R)`: which of the step's query rows each row of the pieces repeats. `places (T, most)`: where a query
    row's pieces are among them, with -1 where it has fewer or the piece has no key for it. `begins_q (n + 1)`,
    `begins_k (n + 1)` and `used_k (n)` as in a `SpanTable`."""

    window: int
    max_q: int
    max_k: int
    rows: tuple[int, ...]
    places: tuple[int, ...]
    begins_q: tuple[int, ...]
    begins_k: tuple[int, ...]
    used_k: tuple[int, ...]

    @property
    def numbers(self) -> list[int]:
        """All numbers in one list; `PieceTable.of` splits it again."""
        return [*self.rows, *self.places, *self.begins_q, *self.begins_k, *self.used_k]


@dataclass(frozen=True, slots=True)
class PieceTable:
    """The same on the device: int64 `rows (R)`, `places (T, most)` with `absent (T, most)`, and int32 tables."""

    window: int
    max_q: int
    max_k: int
    rows: torch.Tensor
    places: torch.Tensor
    absent: torch.Tensor
    cu_seq_q: torch.Tensor
    cu_seq_k: torch.Tensor
    seqused_k: torch.Tensor

    @classmethod
    def of(cls, pieces: Pieces, tokens: int, numbers: torch.Tensor) -> PieceTable:
        """From int32 `numbers` as `Pieces.numbers` has them, for a step of `tokens` rows."""
        count = len(pieces.used_k)
        sizes = [len(pieces.rows), len(pieces.places), count + 1, count + 1, count]
        rows, places, begins_q, begins_k, used_k = torch.split(numbers, sizes)
        places = places.long().view(tokens, -1)
        tables = (begins_q, begins_k, used_k)
        return cls(*(pieces.window, pieces.max_q, pieces.max_k, rows.long(), places.clamp(min=0), places < 0, *tables))

    def merged(self, outputs: torch.Tensor, lse: torch.Tensor) -> torch.Tensor:
        """The pieces' `outputs (R, heads, dim)` and logarithms of their sums of exponentials `(heads, R)` ->
        `(T, heads, dim)`."""
        scores = lse[:, self.places].masked_fill(self.absent, -torch.inf)
        weights = torch.softmax(scores, dim=-1).permute(1, 2, 0).unsqueeze(-1)
        return (weights * outputs[self.places]).sum(1).to(outputs.dtype)

    def merged_lse(self, lse: torch.Tensor) -> torch.Tensor:
        """The pieces' logarithms of sums `(heads, R)` -> those of whole sequences `(heads, T)`."""
        return lse[:, self.places].masked_fill(self.absent, -torch.inf).logsumexp(-1)


def window_for(used_k: Sequence[int], heads: int, processors: int) -> int | None:
    """How many keys a piece should have so that its blocks keep all processors busy, with two blocks on each. None if
    they are busy without pieces, or there are too few keys."""
    if heads * len(used_k) >= processors:
        return None
    window = max(SHORTEST_TOKENS, -(-sum(used_k) * heads // (2 * processors)))
    window = -(-window // 64) * 64
    return window if window < max(used_k) else None


def cut(begins_q: Sequence[int], begins_k: Sequence[int], used_k: Sequence[int], window: int) -> Pieces:
    """Cuts a step's sequences into pieces. The last number of `begins_k` is not read."""
    rows: list[int] = []
    piece_begins_q, piece_begins_k, piece_used_k = [0], [], []
    places: list[list[int]] = []
    for (first, last), begin, used in zip(pairwise(begins_q), begins_k, used_k, strict=False):
        tokens = last - first
        own: list[list[int]] = [[] for _ in range(tokens)]
        for end in range(used, 0, -window):
            # Row i sees the last `window` keys up to `end - tokens + i`, so no row sees keys before `start`.
            start = max(0, end - window - tokens + 1)
            for row in range(tokens):
                if end - tokens + row >= 0:
                    own[row].append(len(rows))
                rows.append(first + row)
            piece_begins_q.append(len(rows))
            piece_begins_k.append(begin + start)
            piece_used_k.append(end - start)
        places += own
    most = max(map(len, places))
    padded = [place for own in places for place in (*own, *(-1,) * (most - len(own)))]
    longest = max(after - before for before, after in pairwise(begins_q))
    tables = (tuple(piece_begins_q), (*piece_begins_k, begins_k[-1]), tuple(piece_used_k))
    return Pieces(window, longest, max(piece_used_k), tuple(rows), tuple(padded), *tables)


def padded_pieces(pieces: Pieces, count: int, padding_row: int) -> Pieces:
    """Pads the pieces of one sequence to `count` pieces and to the longest keys a piece may have, so that their sizes
    depend only on the window and the query rows. Padding pieces attend to the padding row, and their results are not
    used."""
    more, tokens = count - len(pieces.used_k), pieces.max_q
    most = len(pieces.places) // tokens
    rows = [pieces.places[row * most : (row + 1) * most] for row in range(tokens)]
    return Pieces(
        pieces.window,
        tokens,
        pieces.window + tokens - 1,
        (*pieces.rows, *(*range(tokens),) * more),
        tuple(place for own in rows for place in (*own, *(-1,) * (count - most))),
        tuple(range(0, tokens * count + 1, tokens)),
        (*pieces.begins_k[:-1], *(padding_row,) * (more + 1)),
        (*pieces.used_k, *(1,) * more),
    )
