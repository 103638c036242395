"""Served time: how long this data directory has been in use, independent of jumps of the wall clock.

While the server runs, the machine's steady clock counts. Between two runs the wall clock counts, if it advanced by less
than a day. Everything else is a jump: a wall clock that is behind the database, days ahead of it, or that was changed
while the server ran. Jumps do not count, and nothing is pruned on the first day after one. A server that was off for a
week looks the same; all that costs is a day without pruning.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import sqlite_utils

from sessions.store.database import Database

log = logging.getLogger(__name__)

DAY_S = 24 * 3600.0
TOLERANCE_S = 300.0  # how much the two clocks may differ between two looks


@dataclass(frozen=True, slots=True)
class Clock:
    """`wall` is in seconds since the epoch. `steady` has any origin, is never set, and runs on while the machine
    sleeps."""

    wall: Callable[[], float] = time.time
    steady: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME)


SYSTEM_CLOCK = Clock()


@dataclass(frozen=True, slots=True)
class Seen:
    """`observed_s` is the served time; it only grows, also across restarts. `is_calm` is False for a day of served time
    after a jump."""

    observed_s: float
    is_calm: bool


@dataclass(frozen=True, slots=True)
class _Row:
    wall_at: float
    observed_s: float
    jumped_s: float  # where `observed_s` was at the last jump

    def seen(self) -> Seen:
        return Seen(self.observed_s, self.observed_s - self.jumped_s >= DAY_S)


class ServedTime:
    """Used by one thread. Raises `StoreError` when the file fails; then no time has passed."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._last: tuple[float, float] | None = None  # wall and steady at the last look of this process

    def look(self) -> Seen:
        """The served time until now, which is stored."""
        wall, steady = self._clock.wall(), self._clock.steady()
        with self._database.write() as db:
            found = db.execute("SELECT wall_at, observed_s, jumped_s FROM observed_time").fetchone()
            row = _Row(*found) if found else _Row(_latest(db) or wall, 0.0, -DAY_S)
            passed_s, why = self._passed(row, wall, steady, _latest(db))
            observed_s = row.observed_s + passed_s
            row = _Row(wall, observed_s, observed_s if why else row.jumped_s)
            db.execute("INSERT OR REPLACE INTO observed_time VALUES (1, ?, ?, ?)", [wall, observed_s, row.jumped_s])
        self._last = (wall, steady)
        if why:
            log.warning("clock_jumped why=%r: nothing is pruned for a day", why)
        return row.seen()

    def _passed(self, row: _Row, wall: float, steady: float, latest: float) -> tuple[float, str]:
        """The seconds that count, and what kind of jump there was, "" for none."""
        if self._last is None:
            away_s = wall - row.wall_at
            if away_s < -TOLERANCE_S or latest > wall + TOLERANCE_S:
                return 0.0, "the clock is behind what the database has seen"
            if away_s > DAY_S:
                return 0.0, "the clock is days ahead of what the database has seen, or no server ran for that long"
            return max(0.0, away_s), ""
        wall_s, steady_s = wall - self._last[0], steady - self._last[1]
        counted_s = min(max(0.0, steady_s), DAY_S)
        if abs(wall_s - steady_s) > TOLERANCE_S or steady_s > DAY_S:
            return counted_s, f"the clock moved by {wall_s:.0f} s while {steady_s:.0f} s passed"
        return counted_s, ""


def last_seen(database: Database) -> float:
    """The served time as last stored."""
    with database.read() as db:
        found = db.execute("SELECT observed_s FROM observed_time").fetchone()
    return float(found[0]) if found else 0.0


def _latest(db: sqlite_utils.Database) -> float:
    """The time of the last message, by the wall clock at that time; 0.0 in an empty database."""
    found = db.execute("SELECT max(updated_at) FROM conversations").fetchone()
    return float(found[0] or 0.0)
