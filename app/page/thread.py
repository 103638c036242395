"""One conversation as JSON for the page's script.

A person's message is text. An answer is a list of blocks (app/page/markdown), each with a key: while it grows, only the
blocks that the page does not have yet are sent.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from app import units
from app.page import receipt as receipts
from app.page.markdown.growing import Answers, DrawnBlock
from sessions.types import ConversationView, MessageStatus, MessageView, RunPhase, RunSnapshot

SHOWN_MESSAGES = 30


def draw(
    view: ConversationView, run: RunSnapshot | None, answers: Answers, shown: int = SHOWN_MESSAGES
) -> dict[str, Any]:
    """The last `shown` messages of a conversation, including its running answer so far."""
    messages = view.messages[-shown:]
    running = run if run is not None and run.phase is not RunPhase.DONE else None
    drawn = [_message(message) for message in messages]
    for message, row in zip(messages, drawn, strict=True):
        if message.role != "user":
            is_growing = running is not None and message is messages[-1]
            row["blocks"] = [block.json for block in _blocks(view, message, running if is_growing else None, answers)]
    return {
        "conversation_id": view.summary.conversation_id,
        "title": view.summary.title,
        "updated_at": view.summary.updated_at,
        "messages": drawn,
        "hidden": len(view.messages) - len(messages),
        "run": run_state(running) if running is not None else None,
        "context": _context(view),
    }


def news(blocks: Collection[DrawnBlock], known: Collection[str]) -> dict[str, Any]:
    """The keys of a growing answer's blocks in order, and the blocks that the page does not have."""
    return {
        "keys": [block.key for block in blocks],
        "fresh": {block.key: block.json for block in blocks if block.key not in known},
    }


def run_state(run: RunSnapshot) -> dict[str, Any]:
    """A run's progress, as a label and as a fraction for the progress line (None: no line)."""
    label, fraction = "", None
    if run.phase is RunPhase.WAITING:
        label = "Next in the queue" if run.queue_position <= 1 else f"{units.ordinal(run.queue_position)} in the queue"
    elif run.phase is RunPhase.READING:
        fed, total = run.fed_tokens, max(run.total_tokens, 1)
        label = f"reading {units.tokens(fed)} of {units.tokens(run.total_tokens)} tokens"
        fraction = min(1.0, fed / total)
    return {
        "version": run.version,
        "phase": run.phase.value,
        "label": label,
        "fraction": fraction,
        "sampled_tokens": run.sampled_tokens,
    }


def _blocks(
    view: ConversationView, message: MessageView, running: RunSnapshot | None, answers: Answers
) -> Collection[DrawnBlock]:
    if running is None:
        return answers.whole(message.text)
    return answers.growing(view.summary.conversation_id, running.text)


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
    """The status as a badge before the note, unless the note starts with it."""
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
        "label": f"{units.tokens_short(used)} / {units.tokens_short(limit)}",
    }
