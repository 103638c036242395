"""The small plot of bytes by tier over time, as fractions for the page's script to draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from app import units
from sessions.types import Tier, Usage

MOST_POINTS = 72
_BYTES: dict[Tier, Callable[[Usage], int]] = {
    Tier.DEVICE: lambda usage: usage.device_bytes,
    Tier.HOST: lambda usage: usage.host_bytes,
    Tier.DISK: lambda usage: usage.disk_bytes,
}


def draw(history: Sequence[Usage], tiers: Sequence[Tier], now: float) -> dict[str, Any] | None:
    """A line for each of `tiers`: points `[x, y]` from the oldest on, `x` a fraction of the time and `y` of the largest
    value. None before there is anything to see."""
    shown = _thinned(history)
    largest = max((_BYTES[tier](usage) for usage in shown for tier in tiers), default=0)
    if len(history) < 2 or largest <= 0:
        return None
    times = list(accumulate((usage.at for usage in shown), max))  # a clock that was set back draws nothing backwards
    begin, span = times[0], max(times[-1] - times[0], 1e-6)
    lines = []
    for tier in tiers:
        points = [
            [round((at - begin) / span, 3), round(_BYTES[tier](usage) / largest, 3)]
            for at, usage in zip(times, shown, strict=True)
        ]
        lines.append({"tier": tier.value, "points": points})
    ago = units.seconds(max(now, times[-1]) - begin)
    words = _words(shown, tiers, ago)
    return {"lines": lines, "largest": units.size(largest), "since": f"{ago} ago", "words": words}


def _thinned(history: Sequence[Usage]) -> list[Usage]:
    """At most about `MOST_POINTS`, the newest among them."""
    step = max(1, -(-len(history) // MOST_POINTS))
    return list(history[::-step])[::-1]


def _words(shown: Sequence[Usage], tiers: Sequence[Tier], ago: str) -> str:
    """The plot for somebody who does not see it."""
    clauses = []
    for tier in tiers:
        values = [_BYTES[tier](usage) for usage in shown]
        clauses.append(
            f"{tier.value} between {units.size(min(values))} and {units.size(max(values))}, "
            f"now {units.size(values[-1])}"
        )
    return f"Bytes held over the last {ago}: {'; '.join(clauses)}."
