"""Allocates runs of rows in one long buffer. Numbers only: no tensors, no locks."""

from __future__ import annotations

from bisect import bisect_left


class SpanAllocator:
    """Allocates runs of rows `start..start + rows` of `0..capacity`. Best fit, so that long holes stay whole."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._starts: list[int] = [0] if capacity else []  # of the holes, in order; no two holes are adjacent
        self._rows: list[int] = [capacity] if capacity else []

    @property
    def free_rows(self) -> int:
        """How many rows are free."""
        return sum(self._rows)

    def take(self, rows: int) -> int | None:
        """Allocates `rows` rows and returns their start, or None if no hole is long enough."""
        fits = [(length, place) for place, length in enumerate(self._rows) if length >= rows]
        if rows <= 0 or not fits:
            return None
        place = min(fits)[1]
        start = self._starts[place]
        self._shorten(place, rows)
        return start

    def extend(self, end: int, rows: int) -> bool:
        """Allocates the `rows` rows from `end` on if they are free."""
        place = bisect_left(self._starts, end)
        if place == len(self._starts) or self._starts[place] != end or self._rows[place] < rows:
            return False
        self._shorten(place, rows)
        return True

    def give_back(self, start: int, rows: int) -> None:
        """Frees an allocated run. Raises `ValueError` if part of it is already free."""
        if rows <= 0:
            return
        place = bisect_left(self._starts, start)
        before_end = self._starts[place - 1] + self._rows[place - 1] if place else 0
        after_start = self._starts[place] if place < len(self._starts) else self.capacity
        if start < before_end or start + rows > after_start:
            raise ValueError(f"rows {start}..{start + rows} were not taken")
        self._starts.insert(place, start)
        self._rows.insert(place, rows)
        for left in (place, place - 1):
            if 0 <= left < len(self._starts) - 1 and self._starts[left] + self._rows[left] == self._starts[left + 1]:
                self._rows[left] += self._rows[left + 1]
                del self._starts[left + 1], self._rows[left + 1]

    def _shorten(self, place: int, rows: int) -> None:
        self._starts[place] += rows
        self._rows[place] -= rows
        if not self._rows[place]:
            del self._starts[place], self._rows[place]
