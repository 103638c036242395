"""One conversation as the page draws it: rows for the two chat displays, and the state that goes around them.

Only the last message changes while an answer grows, so it lives in a display of its own: redrawing it costs the same
however long the history is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from app import formatting, markdown, receipts
from sessions.types import ConversationView, MessageStatus, MessageView, RunPhase, RunSnapshot

SHOWN_MESSAGES = 30
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Drawing:
    """`earlier` and `latest` are chat rows; `state` is JSON for the page's script."""

    earlier: list[Row]
    latest: list[Row]
    state: dict[str, Any]


def draw(view: ConversationView, run: RunSnapshot | None, shown: int = SHOWN_MESSAGES) -> Drawing:
    """The last `shown` messages of a conversation, with its running answer as far as it got."""
    messages = view.messages[-shown:]
    running = run if run is not None and run.phase is not RunPhase.DONE else None
    rows = [row(message, running if message is messages[-1] else None) for message in messages]
    state = {
        "conversation_id": view.summary.conversation_id,
        "title": view.summary.title,
        "updated_at": view.summary.updated_at,
        "messages": [_message(message) for message in messages],
        "hidden": len(view.messages) - len(messages),
        "run": run_state(running) if running is not None else None,
        "context": _context(view),
    }
    return Drawing(rows[:-1], rows[-1:], state)


def row(message: MessageView, run: RunSnapshot | None = None) -> Row:
    """A message as `gr.Chatbot` takes it. A bare string would be de-indented by it."""
    if message.role == "user":
        return _row("user", markdown.literal(message.text))
    return answer_row(run.text if run is not None else message.text)


def answer_row(text: str) -> Row:
    """An answer, finished or growing."""
    return _row("assistant", markdown.answer(text))


def run_state(run: RunSnapshot) -> dict[str, Any]:
    """Where a run is, in words and as a fraction for the progress line (None: no line)."""
    label, fraction = "", None
    if run.phase is RunPhase.WAITING:
        label = "Next in line" if run.queue_position <= 1 else f"{formatting.ordinal(run.queue_position)} in line"
    elif run.phase is RunPhase.READING:
        fed, total = run.fed_tokens, max(run.total_tokens, 1)
        label = f"reading {formatting.tokens(fed)} of {formatting.tokens(run.total_tokens)} tokens"
        fraction = min(1.0, fed / total)
    return {
        "version": run.version,
        "phase": run.phase.value,
        "label": label,
        "fraction": fraction,
        "sampled_tokens": run.sampled_tokens,
    }


def _row(role: str, text: str) -> Row:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _message(message: MessageView) -> dict[str, Any]:
    receipt = message.receipt
    return {
        "id": message.message_id,
        "role": message.role,
        "text": message.text,
        "status": message.status.value,
        "status_word": _status_word(message),
        "sibling_number": message.sibling_number,
        "sibling_count": message.sibling_count,
        "note": message.note,
        "can_continue": message.can_continue,
        "receipt": None
        if receipt is None
        else {
            "line": receipts.line(receipt),
            "details": receipts.details(receipt),
            "missed": bool(receipt.miss_reason),
        },
    }


def _status_word(message: MessageView) -> str:
    """A badge before the note, unless the note says it itself."""
    if message.status in (MessageStatus.COMPLETE, MessageStatus.RUNNING):
        return ""
    word = message.status.value
    return "" if message.note.lower().startswith(word) else word


def _context(view: ConversationView) -> dict[str, Any]:
    used, limit = view.ledger_tokens, view.context_limit_tokens
    return {
        "used_tokens": used,
        "limit_tokens": limit,
        "fraction": min(1.0, used / limit) if limit else 0.0,
        "label": f"{formatting.tokens_short(used)} / {formatting.tokens_short(limit)}",
    }
