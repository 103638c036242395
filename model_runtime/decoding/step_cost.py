"""Measures how much longer a decode step takes with more rows, to decide whether a draft is worth feeding."""

from __future__ import annotations

import bisect
import statistics
import time
from collections.abc import Callable

from model_runtime.forward.runtime import Forward, KVPlace
from model_runtime.forward.transformers_forward import Feed
from model_runtime.kv.slab import hold_zeros

# On both sides of 4 rows, because the packed 4-bit kernel works in tiles of 4.
MOST_ROWS = 16
_MEASURED_ROWS = (1, 2, 4, 5, 8, MOST_ROWS)
_RUNS = 3


class StepCost:
    """Seconds of a forward by its number of rows, measured at start-up and interpolated linearly."""

    def __init__(self) -> None:
        self._rows: list[int] = [1]
        self._seconds: list[float] = [1.0]

    def measure(self, step_s: Callable[[int], float]) -> None:
        """Measures with `step_s(rows)`, which runs a step and returns its seconds. Keeps medians of several runs."""
        runs = [[step_s(rows) for rows in _MEASURED_ROWS] for _ in range(_RUNS)]
        seconds = [statistics.median(times) for times in zip(*runs, strict=True)]
        for place in range(1, len(seconds)):  # an outlier must not make more rows look cheaper than fewer
            seconds[place] = max(seconds[place], seconds[place - 1])
        self._rows, self._seconds = list(_MEASURED_ROWS), seconds

    def measure_on(self, forward: Forward, place: KVPlace, history_tokens: int) -> None:
        """Measures on a model, after a history of `history_tokens` tokens."""
        slab = place.new_kv()
        hold_zeros(slab, history_tokens, history_tokens + MOST_ROWS)

        def step_s(rows: int) -> float:
            begin = time.perf_counter()
            forward.run([Feed(slab, [1] * rows, rows)]).argmax().item()  # waits for the device
            slab.crop(history_tokens)
            return time.perf_counter() - begin

        self.measure(step_s)
        slab.free()

    def seconds(self, rows: int) -> float:
        """Expected seconds of a step of `rows` rows."""
        if rows <= self._rows[0] or len(self._rows) == 1:
            return self._seconds[0]
        place = min(bisect.bisect_left(self._rows, rows), len(self._rows) - 1)
        low, high = self._rows[place - 1], self._rows[place]
        slope = (self._seconds[place] - self._seconds[place - 1]) / (high - low)
        return self._seconds[place] + slope * (rows - high)
