"""The memory panel's JSON: formatted numbers, actions and why some are disabled, and the plot's lines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from app import units
from app.page import memory_panel
from app.process_memory import ProcessMemory
from model_runtime.interface.findings import Int8Drift
from sessions.types import BranchMemory, CheckView, EngineHit, MemoryRow, MemoryView, Tier, Usage

MIB = 1024 * 1024
NOW = 1_700_000_000.0
ROW = MemoryRow(
    conversation_id="c",
    title="Trip to Lisbon",
    tier=Tier.DEVICE,
    ledger_tokens=1859,
    kv_tokens=1858,
    used_bytes=81 * MIB,
    reserved_bytes=0,
    next_ttft_s=0.21,
    cold_ttft_s=14.2,
    last_used_at=NOW - 600,
    is_running=False,
)
VIEW = MemoryView(
    rows=(ROW,),
    device_used_bytes=212 * MIB,
    device_reserved_bytes=30 * MIB,
    device_budget_bytes=512 * MIB,
    saved_s_total=130,
    reused_tokens_total=12_345,
    disk_used_bytes=900 * MIB,
    disk_budget_bytes=8192 * MIB,
)


def row_of(**changes: Any) -> dict[str, Any]:
    view_changes = {name: changes.pop(name) for name in list(changes) if name.endswith("budget_bytes")}
    view = replace(VIEW, rows=(replace(ROW, **changes),), **view_changes)
    return dict(memory_panel.draw(view, NOW)["rows"][0])


def labels(row: dict[str, Any]) -> list[str]:
    return [action["label"] + (" (no)" if action["disabled"] else "") for action in row["actions"]]


def test_totals_show_used_and_reserved_apart() -> None:
    drawn = memory_panel.draw(VIEW, NOW)
    device, disk = drawn["bars"]
    assert (device["tier"], device["used"], device["reserved"]) == ("device", "212.0 MiB", "30.0 MiB")
    assert [(part["name"], part["share"]) for part in device["parts"]] == [
        ("used", 0.4141),
        ("reserved", 0.0586),
        ("free", 0.5273),
    ]
    assert (disk["tier"], disk["used"], disk["budget"], disk["reserved"]) == ("disk", "900.0 MiB", "8.0 GiB", "")
    assert (drawn["saved"], drawn["reused"]) == ("2 min 10 s", "12,345")
    with_host = memory_panel.draw(replace(VIEW, host_budget_bytes=64 * MIB, pinned_bytes=MIB, pin_limit_bytes=2 * MIB))
    assert [bar["tier"] for bar in with_host["bars"]] == ["device", "host", "disk"]
    assert with_host["bars"][0]["note"] == "1.0 MiB of 2.0 MiB pinned"


def test_a_note_and_what_is_reserved_are_explained_apart() -> None:
    drift = Int8Drift("int8", 2.0, 64, 64, 2.5, 2.51, 0.99)
    pinned = replace(VIEW, pinned_bytes=MIB, pin_limit_bytes=2 * MIB)
    (device,) = memory_panel.draw(replace(pinned, disk_used_bytes=0, disk_budget_bytes=0), NOW)["bars"]
    assert (device["reserved_hint"], device["hint"]) == (memory_panel.RESERVED_HINT, "")
    with_drift = replace(pinned, disk_used_bytes=0, disk_budget_bytes=0, int8_drift=drift)
    (device,) = memory_panel.draw(with_drift, NOW)["bars"]
    assert (device["reserved_hint"], device["hint"]) == (memory_panel.RESERVED_HINT, drift.sentence)


def test_a_row_says_where_its_bytes_are_and_what_the_next_turn_costs() -> None:
    row = row_of(disk_tokens=1858, disk_bytes=83 * MIB)
    assert (row["tokens"], row["cold"], row["used_at"]) == ("1,859", "14 s", NOW - 600)
    assert [(place["tier"], place["tokens"], place["size"]) for place in row["places"]] == [
        ("device", "1,858", "81.0 MiB"),
        ("disk", "1,858", "83.0 MiB"),
    ]
    assert [place["here"] for place in row["places"]] == [None, None]  # not asked for
    assert row["next"] == ""  # it depends on the branch


def test_the_shown_branch_and_all_branches_are_named_apart() -> None:
    branch = BranchMemory(1858, 81 * MIB, disk_tokens=1858, disk_bytes=83 * MIB)
    here = replace(ROW, disk_tokens=2900, disk_bytes=130 * MIB, branch=branch)
    drawn = memory_panel.draw(VIEW, NOW, here)["here"]
    assert drawn["next"] == "0.21 s"
    device, disk = drawn["places"]
    assert device["here"] == {"tokens": device["tokens"], "size": device["size"]}  # it holds this branch alone
    assert (disk["tokens"], disk["size"]) == ("2,900", "130.0 MiB")
    assert disk["here"] == {"tokens": "1,858", "size": "83.0 MiB"}


@pytest.mark.parametrize("host_budget_bytes", [0, MIB])
def test_the_open_conversation_has_the_same_lines_before_it_keeps_anything(host_budget_bytes: int) -> None:
    view = replace(VIEW, host_budget_bytes=host_budget_bytes)
    full = BranchMemory(1858, 81 * MIB, disk_tokens=1858, disk_bytes=83 * MIB)
    kept = memory_panel.draw(view, NOW, replace(ROW, disk_tokens=1858, disk_bytes=83 * MIB, branch=full))["here"]
    new = replace(ROW, tier=Tier.NONE, kv_tokens=0, used_bytes=0, branch=BranchMemory(0, 0))
    begun = memory_panel.draw(view, NOW, new)["here"]
    tiers = [place["tier"] for place in begun["places"]]
    assert tiers == [place["tier"] for place in kept["places"]]
    assert tiers == [bar["tier"] for bar in memory_panel.draw(view, NOW)["bars"]]
    assert {place["size"] for place in begun["places"]} == {"0"}


def test_an_empty_conversation_has_no_row() -> None:
    assert memory_panel.draw(VIEW, NOW, replace(ROW, ledger_tokens=0, kv_tokens=0))["here"] is None


def test_what_does_not_matter_is_not_sent_again() -> None:
    first, later = (
        memory_panel.draw_plot([Usage(NOW + n, MIB, 0, 0) for n in range(9)], [Tier.DEVICE], Usage(NOW + at, MIB, 0, 0))
        for at in (10, 20)
    )
    assert memory_panel.plot_worth(first, NOW + 10) == memory_panel.plot_worth(later, NOW + 20)
    assert memory_panel.plot_worth(first, NOW) != memory_panel.plot_worth(first, NOW + 600)
    one = ProcessMemory(690 * MIB, 420 * MIB, 120 * MIB, 24 * MIB)
    assert memory_panel.process_worth(one) == memory_panel.process_worth(replace(one, resident_bytes=692 * MIB))
    assert memory_panel.process_worth(one) != memory_panel.process_worth(replace(one, resident_bytes=800 * MIB))


@pytest.mark.parametrize(
    ("changes", "offered"),
    [
        ({}, ["Pin", "To disk", "Check", "Forget"]),
        ({"host_budget_bytes": MIB}, ["Pin", "Set aside", "To disk", "Check", "Forget"]),
        ({"disk_budget_bytes": 0}, ["Pin", "Check", "Forget"]),
        ({"is_pinned": True}, ["Unpin", "To disk (no)", "Check", "Forget (no)"]),
        ({"is_running": True}, ["Pin (no)", "To disk (no)", "Check", "Forget (no)"]),
        ({"tier": Tier.DISK}, ["Pin", "Bring back", "Check", "Forget"]),
        ({"tier": Tier.HOST}, ["Pin", "To disk", "Bring back", "Check", "Forget"]),
        ({"tier": Tier.NONE}, ["Pin"]),
        ({"check": CheckView(True, None, "reading", NOW)}, ["Pin", "To disk", "Check (no)", "Forget"]),
    ],
)
def test_what_can_be_done(changes: dict[str, Any], offered: list[str]) -> None:
    row = row_of(**changes)
    assert labels(row) == offered
    assert all(action["hint"] for action in row["actions"])


def test_a_check_is_shown_until_the_next_turn() -> None:
    check = CheckView(False, True, "its memory is correct (1,858 tokens read again)", NOW - 500)
    shown = row_of(check=check)["check"]
    assert (shown["state"], shown["text"]) == ("true", "Its memory is correct (1,858 tokens read again)")
    assert row_of(check=check, last_used_at=NOW - 400)["check"] is None
    assert row_of(check=replace(check, agrees=False))["check"]["state"] == "bad"
    assert row_of(check=replace(check, agrees=None))["check"]["state"] == "unknown"
    running = row_of(check=replace(check, is_running=True), last_used_at=NOW)["check"]
    assert (running["state"], running["at"]) == ("running", 0)


def test_the_plot_keeps_its_ends_and_says_itself_in_words() -> None:
    history = [Usage(NOW - 5 * n, n * MIB, 0, 2 * n * MIB) for n in reversed(range(200))]
    drawn = memory_panel.draw_plot(history, [Tier.DEVICE, Tier.DISK], history[-1])
    device, disk = drawn["lines"]
    assert len(device["points"]) <= memory_panel.MOST_POINTS + 1
    assert (disk["points"][0][0], disk["points"][-1]) == (0.0, [1.0, 0.0])
    assert all(0 <= x <= 1 and 0 <= y <= 1 for line in drawn["lines"] for x, y in line["points"])
    assert max(y for _, y in disk["points"]) == 1.0
    assert drawn["words"].startswith("Bytes held over the last 16 min")
    assert "in memory between 0 and 19" in drawn["words"]


@pytest.mark.parametrize("history", [[], [Usage(NOW, 0, 0, 0)], [Usage(NOW - 5, 0, 0, 0), Usage(NOW, 2 * MIB, 0, 0)]])
@pytest.mark.parametrize("held", [0, MIB, 6 * MIB])
def test_the_plot_ends_with_what_the_bars_show(history: list[Usage], held: int) -> None:
    panel = memory_panel.draw(replace(VIEW, history=tuple(history), device_used_bytes=held, disk_used_bytes=0), NOW + 1)
    shares = [next(part["share"] for part in bar["parts"] if part["name"] == "used") for bar in panel["bars"]]
    lines = panel["plot"]["lines"]
    assert [line["tier"] for line in lines] == [bar["tier"] for bar in panel["bars"]]
    for share, line in zip(shares, lines, strict=True):
        assert (line["points"][-1][1] > 0) == (share > 0)
        assert (line["points"][0][0], line["points"][-1][0]) == (0.0, 1.0)
    most = max(held, *(usage.device_bytes for usage in history), 0)
    assert panel["plot"]["largest"] == (units.size(most) if most else "")
    assert lines[0]["points"][-1][1] == (round(held / most, 3) if most else 0)


def test_a_remote_engine_has_no_bars_and_no_actions() -> None:
    hit = EngineHit(NOW - 600, 1800, 1790, True)
    row = replace(ROW, tier=Tier.ENGINE, kv_tokens=0, used_bytes=0, engine_tokens=1858, engine_hit=hit)
    drawn = memory_panel.draw(replace(VIEW, rows=(row,), keeps_kv=False), NOW)
    assert drawn["bars"] == []
    found = drawn["rows"][0]
    assert (found["tier"], found["tokens"], found["actions"]) == ("engine", "1,859", [])
    (place,) = found["places"]
    assert place["tokens"] == "1,790 of 1,800"
    assert place["size"].endswith("; a hit is likely now")
