"""The right sidebar: what the open conversation keeps where, what its next answer will wait for, the actions on its
memory, the totals, and the same for all conversations. Words are plain; `hint`s have the exact terms."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from app import units
from app.process_memory import ProcessMemory
from sessions.types import EngineHit, MemoryRow, MemoryView, Tier, Usage

SHOWN_EVENTS = 30
BUSY = "An answer is being written with it."
PINNED = "It is pinned. Unpin it first."
RESERVED_HINT = "Reserved: room that the answers being written now may need until they end."
PROCESS_HINT = (
    "All memory of this process. Model: its weights. Conversations: their KVs. Program: Python and its libraries, "
    "before any model was loaded. Other: working memory of answers, open connections, files on their way to the disk."
)
MOST_POINTS = 72
PLOT_EVERY_S = 300  # a plot in which nothing happens is sent this often
PROCESS_STEPS = 16  # for a size that doubles: smaller changes of the process are not worth sending
_BYTES: dict[Tier, Callable[[Usage], int]] = {
    Tier.DEVICE: lambda usage: usage.device_bytes,
    Tier.HOST: lambda usage: usage.host_bytes,
    Tier.DISK: lambda usage: usage.disk_bytes,
}
Action = dict[str, Any]


def words(device: str) -> dict[str, str]:
    """What the page calls the tiers of a model on this device."""
    return {tier.value: word for tier, word in units.tier_words(device).items()}


def draw(
    view: MemoryView,
    now: float | None = None,
    here: MemoryRow | None = None,
    place: units.TierWords = units.CPU_WORDS,
) -> dict[str, Any]:
    """The memory panel as JSON for the page's script. Shares are fractions of a tier's budget. `here` is the open
    conversation's row, and `place` are the words for the tiers."""
    moment = time.time() if now is None else now
    bars = _bars(view)
    current = Usage(moment, view.device_used_bytes, view.host_used_bytes, view.disk_used_bytes)
    return {
        "bars": bars,
        "plot": draw_plot(view.history, [Tier(bar["tier"]) for bar in bars], current, place) if bars else None,
        "here": _row(view, here, place) if here is not None and _is_worth_a_row(here) else None,
        "rows": [_row(view, row, place) for row in view.rows if _is_worth_a_row(row)],
        "saved": units.seconds(view.saved_s_total) if view.saved_s_total >= 0.005 else "",
        "reused": units.tokens(view.reused_tokens_total),
        "events": [{"at": round(event.at), "text": event.text} for event in view.events[:SHOWN_EVENTS]],
    }


def plot_worth(plot: Mapping[str, Any] | None, now: float) -> object:
    """Changes when a plot should be sent again: after a change of what is held, and from time to time."""
    if plot is None:
        return None
    return [plot["largest"], [line["points"][-1][1] for line in plot["lines"]], int(now // PLOT_EVERY_S)]


def process_worth(memory: ProcessMemory) -> object:
    """Changes when the process's memory has changed by about 4%."""
    sizes = (memory.resident_bytes, memory.weights_bytes, memory.kv_bytes)
    return [round(math.log2(max(size, units.MIB)) * PROCESS_STEPS) for size in sizes]


def draw_process(memory: ProcessMemory) -> dict[str, str]:
    """The memory that the whole process takes, as JSON for the page's script."""
    parts = (
        ("model", memory.weights_bytes),
        ("conversations", memory.kv_bytes),
        ("program", memory.program_bytes),
        ("other", memory.other_bytes),
    )
    return {
        "resident": units.size(memory.resident_bytes),
        "parts": " · ".join(f"{name} {units.size(size)}" for name, size in parts if size),
        "hint": PROCESS_HINT,
    }


def _bars(view: MemoryView) -> list[dict[str, Any]]:
    """One bar for each tier with a budget; none for a remote engine, whose memory is not ours to measure. Pinned bytes
    are part of the used bytes."""
    if not view.keeps_kv:
        return []
    bars = [
        _bar(Tier.DEVICE, view.device_used_bytes, view.device_reserved_bytes, view.device_budget_bytes),
    ]
    if view.pinned_bytes:
        bars[0]["note"] = f"{units.size(view.pinned_bytes)} of {units.size(view.pin_limit_bytes)} pinned"
    if view.host_budget_bytes:
        bars.append(_bar(Tier.HOST, view.host_used_bytes, view.host_reserved_bytes, view.host_budget_bytes))
    if view.disk_budget_bytes or view.disk_used_bytes:
        bars.append(_bar(Tier.DISK, view.disk_used_bytes, 0, view.disk_budget_bytes))
        bars[-1]["note"], bars[-1]["hint"] = _disk_note(view)
    if view.int8_drift is not None:
        drift = view.int8_drift
        kept = f"kept as {drift.dtype}: best token the same in {drift.top1_agreement:.1%}"
        bars[-1]["note"] = " · ".join(note for note in (bars[-1]["note"], kept) if note)
        bars[-1]["hint"] = " ".join(hint for hint in (bars[-1]["hint"], drift.sentence) if hint)
    return bars


def _disk_note(view: MemoryView) -> tuple[str, str]:
    """(note, hint) about saved KVs that cannot be used now, and why they are kept."""
    if not view.disk_budget_bytes:
        return "not read now", "The server runs with --disk-kv-budget 0. What was saved before is not deleted."
    if not view.disk_other_bytes:
        return "", ""
    hint = (
        "Saved by other models or settings, for when the server is started with them again. Deleted first when space "
        "is needed."
    )
    return f"other models: {units.size(view.disk_other_bytes)}", hint


def _bar(tier: Tier, used: int, reserved: int, budget: int) -> dict[str, Any]:
    whole = max(budget, 1)
    parts = [_part("used", used, whole), _part("reserved", reserved, whole)]
    parts.append(_part("free", max(0, budget - used - reserved), whole))
    if not budget:  # a budget of 0: the bar is full
        parts[0]["share"] = 1.0
    return {
        "tier": tier.value,
        "budget": units.size(budget),
        "used": units.size(used),
        "reserved": units.size(reserved) if reserved else "",
        "parts": parts,
        "reserved_hint": RESERVED_HINT if reserved else "",
        "note": "",
        "hint": "",
    }


def _part(name: str, count_bytes: int, budget: int) -> dict[str, Any]:
    return {"name": name, "size": units.size(count_bytes), "share": round(count_bytes / budget, 4)}


def _is_worth_a_row(row: MemoryRow) -> bool:
    return bool(row.ledger_tokens or row.kv_tokens)


def _row(view: MemoryView, row: MemoryRow, place: units.TierWords) -> dict[str, Any]:
    return {
        "id": row.conversation_id,
        "title": row.title or "New conversation",
        "tier": row.tier.value,
        "pinned": row.is_pinned,
        "tokens": units.tokens(row.ledger_tokens),
        "places": _places(view, row),
        # Known of the branch that is shown; to find out of each conversation's takes too long for a list.
        "next": "" if row.branch is None else units.seconds(row.next_ttft_s),
        "cold": units.seconds(row.cold_ttft_s),
        "used_at": round(row.last_used_at),
        "check": _check(row),
        "actions": _actions(view, row, place),
        "is_running": row.is_running,
    }


def _places(view: MemoryView, row: MemoryRow) -> list[dict[str, Any]]:
    """What each tier holds of the conversation's KV, the fastest tier first: "tokens" and "size" of all its branches
    together, "here" of the branch that is shown, where that was asked for. Then a tier that holds nothing yet is there
    too, so that the page has its lines from the beginning. Of a remote engine, what it said last."""
    if row.engine_hit is not None:
        return [_reported(row.engine_hit)]
    branch = row.branch
    held = [
        (Tier.DEVICE, row.kv_tokens, row.used_bytes, branch and (branch.device_tokens, branch.device_bytes)),
        (Tier.HOST, row.host_tokens, row.host_bytes, branch and (branch.host_tokens, branch.host_bytes)),
        (Tier.DISK, row.disk_tokens, row.disk_bytes, branch and (branch.disk_tokens, branch.disk_bytes)),
    ]
    budgets = {bar["tier"] for bar in _bars(view)} if branch else set()
    places = []
    for tier, tokens, used, here in held:
        if not used and tier.value not in budgets:
            continue
        shown = {"tokens": units.tokens(here[0]), "size": units.size(here[1])} if here else None
        places.append(
            {
                "tier": tier.value,
                "tokens": units.tokens(tokens),
                "size": units.size(used),
                "here": shown,
            }
        )
    return places


def _reported(hit: EngineHit) -> dict[str, Any]:
    expected = {True: "a hit is likely now", False: "a hit is unlikely now", None: "whether a hit follows is not known"}
    return {
        "tier": Tier.ENGINE.value,
        "tokens": f"{units.tokens(hit.reused_tokens)} of {units.tokens(max(0, hit.kept_tokens))}",
        "size": f"as reported last; {expected[hit.is_likely]}",
        "here": None,
    }


def _check(row: MemoryRow) -> dict[str, Any] | None:
    """The newest verification, unless a later turn has changed the memory since."""
    check = row.check
    if check is None or (not check.is_running and check.at + 1 < row.last_used_at):
        return None
    state = "running" if check.is_running else {True: "true", False: "bad", None: "unknown"}[check.agrees]
    at = 0 if check.is_running else round(check.at)
    return {"state": state, "text": check.sentence[:1].upper() + check.sentence[1:], "at": at}


def _actions(view: MemoryView, row: MemoryRow, place: units.TierWords) -> list[Action]:
    """The actions on a conversation's memory, in reading order. One that is disabled says why. A remote engine decides
    by itself what it keeps."""
    if not view.keeps_kv:
        return []
    kept, device, host = row.tier is not Tier.NONE, place[Tier.DEVICE], place[Tier.HOST]
    busy = BUSY if row.is_running else ""
    fixed = PINNED if row.is_pinned else busy
    actions = [
        _action("unpin", "Unpin", "It may leave when others need the room.", "")
        if row.is_pinned
        else _action("pin", "Pin", f"Keeps it {device}, also after a restart.", busy)
    ]
    if row.tier is Tier.DEVICE and view.host_budget_bytes:
        actions.append(_action("host", "Set aside", f"Keeps it {host}, so that others can use its room.", fixed))
    if row.tier in (Tier.DEVICE, Tier.HOST) and view.disk_budget_bytes:
        actions.append(_action("disk", "To disk", "Moves it to disk, so that others can use its room.", fixed))
    if row.tier in (Tier.HOST, Tier.DISK):
        actions.append(_action("warm", "Bring back", f"Has it {device} before the next message.", busy))
    if kept:
        verifying = row.check is not None and row.check.is_running
        hint = "Verify: reads the conversation again and compares. Memory that disagrees is dropped."
        actions.append(_action("verify", "Check", hint, "It is being checked now." if verifying else ""))
        hint = "Drop: frees the memory and the saved copies. The text stays; the next message reads it again."
        actions.append(_action("drop", "Forget", hint, fixed))
    return actions


def _action(name: str, label: str, hint: str, refused: str) -> Action:
    return {"name": name, "label": label, "hint": refused or hint, "disabled": bool(refused)}


def draw_plot(
    history: Sequence[Usage], tiers: Sequence[Tier], current: Usage, place: units.TierWords = units.CPU_WORDS
) -> dict[str, Any]:
    """Bytes by tier over time, as fractions for the page's script to draw: for each tier points `[x, y]` from the
    oldest on, `x` a fraction of the time span and `y` of the largest value. The last point is `current`, what the bars
    show; alone it is drawn as a level line."""
    shown = [*_thinned(history), current]
    if len(shown) == 1:
        shown *= 2
    largest = max((_BYTES[tier](usage) for usage in shown for tier in tiers), default=0)
    times = list(accumulate((usage.at for usage in shown), max))  # no line goes back, even if the clock was set back
    begin, span_s = times[0], times[-1] - times[0]
    across = [(at - begin) / span_s for at in times] if span_s else [0.0] * (len(times) - 1) + [1.0]
    lines = []
    for tier in tiers:
        points = [
            [round(x, 3), round(_BYTES[tier](usage) / max(largest, 1), 3)]
            for x, usage in zip(across, shown, strict=True)
        ]
        lines.append({"tier": tier.value, "points": points})
    ago = units.seconds(span_s)
    return {
        "lines": lines,
        "largest": units.size(largest) if largest else "",
        "since": f"{ago} ago" if span_s >= 1 else "",
        "words": _said(shown, tiers, ago, place),
    }


def _thinned(history: Sequence[Usage]) -> list[Usage]:
    """At most about `MOST_POINTS` entries, including the newest."""
    step = max(1, -(-len(history) // MOST_POINTS))
    return list(history[::-step])[::-1]


def _said(shown: Sequence[Usage], tiers: Sequence[Tier], ago: str, place: units.TierWords) -> str:
    """The plot as text for screen readers."""
    clauses = []
    for tier in tiers:
        values = [_BYTES[tier](usage) for usage in shown]
        clauses.append(
            f"{place[tier]} between {units.size(min(values))} and {units.size(max(values))}, "
            f"now {units.size(values[-1])}"
        )
    return f"Bytes held over the last {ago}: {'; '.join(clauses)}."
