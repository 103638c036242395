"""One conversation as JSON for the page's script.

A person's message is text. An answer is a list of blocks (app/page/markdown), each with a key: while it grows, only the
blocks that the page does not have yet are sent. The first of them may be a reasoning model's thoughts. Of whole
messages too, only those are sent that the page does not have: each has a token, which changes with what is drawn.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from app import units
from app.page import receipt as receipts
from app.page.markdown.answers import AnswerDrawer, DrawnAnswer
from app.page.news.sections import token_of
from sessions.types import ConversationView, MessageStatus, MessageView, RunPhase, RunSnapshot

SHOWN_MESSAGES = 30
LONGEST_WAITING = 4_000  # characters of a message that waits for an answer
WHOSE = {"user": "You", "assistant": "Answer", "tool": "Result", "reasoning": "Thoughts"}
TOKEN_CHARACTERS = 12  # 48 bits: the page sends them all along
LONGEST_TOKEN = 12  # characters, on average: a longer answer was not all written in its last turn


def draw(
    view: ConversationView,
    run: RunSnapshot | None,
    answers: AnswerDrawer,
    shown: int = SHOWN_MESSAGES,
    place: units.TierWords = units.CPU_WORDS,
    have: Collection[str] = (),
) -> dict[str, Any]:
    """The last `shown` messages of a conversation, including its running answer so far. `place` are the words for the
    tiers. Of a message whose token the page `have`s, only the token is sent."""
    messages = view.messages[-shown:]
    running = _running(messages, run)
    drawn = [_message(message, place) for message in messages]
    for message, row in zip(messages, drawn, strict=True):
        if message.role != "user":
            is_growing = running is not None and message is messages[-1]
            if running is not None and is_growing:
                answer = answers.growing(view.summary.conversation_id, running.text)
            else:
                answer = answers.whole(message.text, message.status is MessageStatus.COMPLETE)
                row["text"] = answer.said  # what is copied
            row["blocks"] = [block.json for block in answer.blocks]
            row["thoughts"] = _thoughts(answer, "" if is_growing else _thinking_time(message, answer))
    return {
        "conversation_id": view.summary.conversation_id,
        "title": view.summary.title,
        "updated_at": view.summary.updated_at,
        "messages": [_unless_known(row, have) for row in drawn],
        "hidden": len(view.messages) - len(messages),
        "waiting": _waiting(view),
        "run": run_state(running) if running is not None else None,
        "context": _context(view),
    }


def _running(messages: Sequence[MessageView], run: RunSnapshot | None) -> RunSnapshot | None:
    """The run that the page follows. An answer that was read as running always has one, though it may have begun or
    ended since `run` was looked up: a page that follows nothing would show it like this for good."""
    if run is not None and run.phase is not RunPhase.DONE:
        return run
    if messages and messages[-1].status is MessageStatus.RUNNING:
        return RunSnapshot(0, RunPhase.WAITING, messages[-1].text)
    return None


def _unless_known(row: dict[str, Any], have: Collection[str]) -> dict[str, Any] | str:
    token = token_of(row)[:TOKEN_CHARACTERS]
    return token if token in have else row | {"token": token}


def news(answer: DrawnAnswer, known: Collection[str]) -> dict[str, Any]:
    """The keys of a growing answer's blocks in order, and the blocks that the page does not have."""
    return {
        "keys": [block.key for block in answer.blocks],
        "fresh": {block.key: block.json for block in answer.blocks if block.key not in known},
        "thoughts": _thoughts(answer, ""),
    }


def run_state(run: RunSnapshot) -> dict[str, Any]:
    """A run's progress, as a label and as a fraction for the progress line (None: no line)."""
    label, fraction = "", None
    if run.phase is RunPhase.WAITING:
        label = "Next in the queue" if run.queue_position <= 1 else f"{units.ordinal(run.queue_position)} in the queue"
        label = "waiting for another answer that reads the same text" if run.is_sharing else label
    elif run.phase is RunPhase.READING:
        # Until the first piece was read, it is not known how much of the conversation must be read.
        fed, total = run.fed_tokens, max(run.total_tokens, 1)
        label = f"reading {units.tokens(fed)} of {units.tokens(run.total_tokens)} tokens" if fed else "reading"
        fraction = min(1.0, fed / total)
    return {
        "version": run.version,
        "phase": run.phase.value,
        "label": label,
        "fraction": fraction,
        "fed_tokens": run.fed_tokens,
        "total_tokens": run.total_tokens,
        "sampled_tokens": run.sampled_tokens,
    }


def _thoughts(answer: DrawnAnswer, time_taken: str) -> dict[str, Any] | None:
    """What the page needs to fold the thoughts, None if there are none."""
    if not answer.has_thoughts:
        return None
    return {"blocks": answer.thought_blocks, "is_open": answer.is_thinking, "time": time_taken}


def _thinking_time(message: MessageView, answer: DrawnAnswer) -> str:
    """About how long the thoughts of a finished answer took: by their share of its text, of the time in which it was
    written. "" if that is not known: after "Continue", the receipt is that of the second part."""
    receipt = message.receipt
    if receipt is None or len(message.text) > LONGEST_TOKEN * receipt.sampled_tokens:
        return ""
    return units.seconds(receipt.decode_s * answer.thought_share)


def _message(message: MessageView, place: units.TierWords) -> dict[str, Any]:
    receipt = message.receipt
    return {
        "id": message.message_id,
        "key": message.first_part_id or message.message_id,  # of the row: an answer that is gone on with stays there
        "role": message.role,
        "text": message.text,
        "system_text": message.system_text,
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
            "details": receipts.details(receipt, place),
            "missed": bool(receipt.miss_reason),
        },
    }


def _status_word(message: MessageView) -> str:
    """The status as a badge before the note, unless the note starts with it."""
    if message.status in (MessageStatus.COMPLETE, MessageStatus.RUNNING):
        return ""
    word = message.status.value
    return "" if message.note.lower().startswith(word) else word


def _waiting(view: ConversationView) -> dict[str, Any] | None:
    """The messages that a program added and that have no answer yet; None without any."""
    if not view.waiting:
        return None
    rows = [{"who": WHOSE.get(role, role), "text": text[:LONGEST_WAITING]} for role, text in view.waiting]
    hidden = view.waiting_count - len(rows)
    what = "A message" if view.waiting_count == 1 else f"{view.waiting_count:,} messages"
    line = f"{what} that a program added, without an answer yet" + (f". The last {len(rows)}:" if hidden else ":")
    return {"line": line, "rows": rows}


def _context(view: ConversationView) -> dict[str, Any]:
    used, limit = view.ledger_tokens, view.context_limit_tokens
    return {
        "used_tokens": used,
        "limit_tokens": limit,
        "fraction": min(1.0, used / limit) if limit else 0.0,
        "label": f"{units.tokens_short(used)} / {units.tokens_short(limit)}",
    }
