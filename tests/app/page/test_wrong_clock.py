"""The page and the cookies after the clock was wrong for a while."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.access.auth import LOGIN_COOKIE, OWNER_COOKIE, Login, Owners
from app.access.visitors import Visitor
from app.page import memory_panel, sidebar
from sessions.store.store import Store
from sessions.types import ConversationSummary, Tier, Usage

DAY_S = 86_400.0
NOW = time.mktime((2026, 11, 29, 12, 0, 0, 0, 0, -1))
ROW = ConversationSummary("a", "A", NOW, Tier.NONE, False, 0)


def headings(*days: float) -> list[tuple[str, int]]:
    """Conversations that were used this many days from now, the latest use first."""
    groups: list[dict[str, Any]] = sidebar.draw([replace(ROW, updated_at=NOW + d * DAY_S) for d in days], NOW)
    return [(group["heading"], len(group["rows"])) for group in groups]


def test_days_go_back_in_time_without_a_break() -> None:
    assert headings(0, -1, -3) == [("Today", 1), ("Yesterday", 1), ("Last 7 days", 1)]
    assert headings(0, 40, -1) == [("Today", 2), ("Yesterday", 1)]  # the clock was ahead
    assert headings(0, -20_000, -1) == [("Today", 1), ("Yesterday", 2)]  # it stood at the epoch
    assert headings(40, 39, -1) == [("Today", 2), ("Yesterday", 1)]


@pytest.mark.parametrize("jump", [-40 * DAY_S, 40 * DAY_S])
def test_the_plot_never_runs_backwards(jump: float) -> None:
    history = [Usage(NOW + n * 5 + (jump if n >= 10 else 0), 100 + n, 0, 0) for n in range(20)]
    plot = memory_panel.draw_plot(history, [Tier.DEVICE], history[-1])
    places = [x for x, _ in plot["lines"][0]["points"]]
    assert places == sorted(places)
    assert (places[0], places[-1]) == (0.0, 1.0)
    assert "-" not in plot["since"]


def test_a_log_in_from_before_the_clock_was_set_back_still_holds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store, now = Store(tmp_path / "data"), time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    try:
        owners, visitor = Owners(b"0" * 32, "word", store.logins), Visitor("127.0.0.1", "", False)
        now += 40 * DAY_S
        login = owners.log_in("word", {}, visitor, owners.permit({}, visitor))
        assert isinstance(login, Login)
        cookies = {OWNER_COOKIE: login.owner_cookie, LOGIN_COOKIE: login.login_cookie}
        now -= 40 * DAY_S
        assert owners.owner_of(cookies) == login.owner_id
        now += 41 * DAY_S
        assert owners.owner_of(cookies) == login.owner_id
        now += 40 * DAY_S
        assert owners.owner_of(cookies) is None  # a log-in ends
    finally:
        store.close()
