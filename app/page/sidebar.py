"""The left sidebar: conversations grouped by the day of last use, each with its tier."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from app import units
from sessions.types import ConversationSummary, Origin

QUARTER_S = 900


def draw(summaries: Sequence[ConversationSummary], now: float | None = None) -> list[dict[str, Any]]:
    """Groups of rows, newest first, as JSON for the page's script."""
    moment = time.time() if now is None else now
    groups: list[dict[str, Any]] = []
    headings: dict[int, str] = {}  # by quarters of an hour: a day begins at one of them everywhere
    for summary, used_at in zip(summaries, _in_order([s.updated_at for s in summaries]), strict=True):
        quarter = int(min(used_at, moment) // QUARTER_S)
        heading = headings.get(quarter) or units.day(min(used_at, moment), moment)
        headings[quarter] = heading
        if not groups or groups[-1]["heading"] != heading:
            groups.append({"heading": heading, "rows": []})
        groups[-1]["rows"].append(_row(summary))
    return groups


def rows(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of all groups in order, each with its group's heading."""
    return [{**row, "heading": group["heading"]} for group in groups for row in group["rows"]]


def _in_order(times: Sequence[float]) -> list[float]:
    """Times of use, the latest first, made monotonic: a time before that of an earlier use was taken while the clock
    was wrong."""
    return list(accumulate(reversed(times), max))[::-1]


def without_one_offs(summaries: Sequence[ConversationSummary]) -> list[ConversationSummary]:
    """Without conversations that programs start for a single request, such as a title or tags for their own chats: no
    person looks for them."""
    return [summary for summary in summaries if summary.origin is not Origin.ONE_OFF]


def _row(summary: ConversationSummary) -> dict[str, Any]:
    return {
        "id": summary.conversation_id,
        "title": summary.title or "New conversation",
        "tier": summary.tier.value,
        "is_running": summary.is_running,
        "updated_at": summary.updated_at,
        "found": None if summary.found is None else (summary.found.before, summary.found.found, summary.found.after),
    }
