"""The right sidebar: what the memory is used for, what each conversation's next turn costs, and what was saved."""

from __future__ import annotations

from typing import Any

from app import formatting
from sessions.types import MemoryRow, MemoryView, Tier

SHOWN_EVENTS = 30


def draw(view: MemoryView) -> dict[str, Any]:
    """The memory panel as JSON for the page's script. Shares are fractions of the budget."""
    budget = max(view.device_budget_bytes, 1)
    free = max(0, view.device_budget_bytes - view.device_used_bytes - view.device_reserved_bytes)
    newest = sorted(view.events, key=lambda event: event.at, reverse=True)
    largest = max((row.used_bytes for row in view.rows), default=0)
    return {
        "budget": formatting.size(view.device_budget_bytes),
        "parts": [
            _part("used", view.device_used_bytes, budget),
            _part("reserved", view.device_reserved_bytes, budget),
            _part("free", free, budget),
        ],
        "disk": _disk(view),
        "rows": [_row(row, largest) for row in view.rows if row.ledger_tokens or row.kv_tokens],
        "saved": formatting.seconds(view.saved_s_total) if view.saved_s_total >= 0.005 else "",
        "reused": formatting.tokens(view.reused_tokens_total),
        "events": [{"clock": formatting.clock(event.at), "text": event.text} for event in newest[:SHOWN_EVENTS]],
    }


def _disk(view: MemoryView) -> dict[str, Any] | None:
    """None when nothing is ever saved."""
    if not view.disk_budget_bytes:
        return None
    return {
        "budget": formatting.size(view.disk_budget_bytes),
        "used": formatting.size(view.disk_used_bytes),
        "share": view.disk_used_bytes / view.disk_budget_bytes,
    }


def _part(name: str, count_bytes: int, budget: int) -> dict[str, Any]:
    return {"name": name, "size": formatting.size(count_bytes), "share": count_bytes / budget}


def _size(row: MemoryRow) -> str:
    """What is held on the device, or what is saved when that is all there is."""
    held_bytes = row.used_bytes or row.disk_bytes
    return formatting.size(held_bytes) if held_bytes else ""


def _row(row: MemoryRow, largest: int) -> dict[str, Any]:
    warm = row.tier is not Tier.COLD
    return {
        "id": row.conversation_id,
        "title": row.title or "New conversation",
        "tier": row.tier.value,
        "tokens": formatting.tokens(row.kv_tokens if row.tier is Tier.DEVICE else row.ledger_tokens),
        "size": _size(row),
        "share": row.used_bytes / largest if largest else 0.0,
        "next": formatting.seconds(row.next_ttft_s),
        "cold": formatting.seconds(row.cold_ttft_s),
        "can_drop": warm and not row.is_running,
        "is_running": row.is_running,
    }
