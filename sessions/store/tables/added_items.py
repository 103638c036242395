"""What clients added to a conversation without asking for an answer. The tree has questions with their answers alone,
so these wait behind its path until a turn takes them in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlite_utils

from sessions.errors import ConversationBusy
from sessions.store.database import Database

KINDS = ("message", "function_call", "function_call_output", "reasoning")


@dataclass(frozen=True, slots=True)
class AddedItem:
    """`body` is JSON of the layer above: an object with the `id` of the item, and one of `KINDS` as its `type`."""

    item_id: str
    body: str

    @property
    def said(self) -> tuple[str, str]:
        """(whose it is: a role, or "reasoning"; its text) for a person."""
        item = json.loads(self.body)
        kind = item["type"]
        if kind == "function_call":
            return "assistant", f"{item['name']}({item['arguments']})"
        role = {"reasoning": kind, "function_call_output": "tool"}.get(kind) or item["role"]
        content = item.get("output") if kind == "function_call_output" else item.get("content") or item.get("summary")
        parts = [{"text": content}] if isinstance(content, str) else content or ()
        return role, "\n".join(map(_text_of, parts))


class AddedItemTable:
    """Raises `StoreError` when the file fails. Items go with their conversation."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of(self, conversation_id: str) -> tuple[AddedItem, ...]:
        """In the order in which they were added."""
        sql = "SELECT id, body FROM added_items WHERE conversation_id = ? ORDER BY number"
        with self._database.read() as db:
            return tuple(AddedItem(str(row[0]), str(row[1])) for row in db.execute(sql, [conversation_id]).fetchall())

    def last(self, conversation_id: str, most: int) -> tuple[AddedItem, ...]:
        """The `most` that were added last, in their order."""
        sql = "SELECT id, body FROM added_items WHERE conversation_id = ? ORDER BY number DESC LIMIT ?"
        with self._database.read() as db:
            found = db.execute(sql, [conversation_id, most]).fetchall()
        return tuple(AddedItem(str(row[0]), str(row[1])) for row in reversed(found))

    def count(self, conversation_id: str) -> int:
        with self._database.read() as db:
            sql = "SELECT count(*) FROM added_items WHERE conversation_id = ?"
            return int(db.execute(sql, [conversation_id]).fetchone()[0])

    def size(self, conversation_id: str) -> tuple[int, int]:
        """(how many there are, the bytes of their bodies)."""
        sql = "SELECT count(*), coalesce(sum(length(CAST(body AS BLOB))), 0) FROM added_items WHERE conversation_id = ?"
        with self._database.read() as db:
            count, size_bytes = db.execute(sql, [conversation_id]).fetchone()
        return int(count), int(size_bytes)

    def has_any(self, conversation_id: str) -> bool:
        with self._database.read() as db:
            sql = "SELECT EXISTS (SELECT 1 FROM added_items WHERE conversation_id = ?)"
            return bool(db.execute(sql, [conversation_id]).fetchone()[0])

    def delete(self, conversation_id: str, item_id: str) -> bool:
        """Whether it was there."""
        with self._database.write() as db:
            sql = "DELETE FROM added_items WHERE id = ? AND conversation_id = ?"
            return bool(db.execute(sql, [item_id, conversation_id]).rowcount)


def insert_items(db: sqlite_utils.Database, conversation_id: str, items: Sequence[AddedItem]) -> None:
    """Behind those that are there. Inside a transaction of `Store`."""
    for item in items:
        sql = "INSERT INTO added_items(id, conversation_id, body) VALUES (?, ?, ?)"
        db.execute(sql, [item.item_id, conversation_id, item.body])


def take_in(db: sqlite_utils.Database, conversation_id: str, item_ids: Sequence[str]) -> None:
    """They are messages of the tree now. Inside the transaction of `MessageTable` that stores these. Raises
    `ConversationBusy` unless they are exactly those that wait: a turn would hide the others, or answer what was
    deleted."""
    sql = "SELECT id FROM added_items WHERE conversation_id = ? ORDER BY number"
    waiting = [str(row[0]) for row in db.execute(sql, [conversation_id]).fetchall()]
    if waiting != list(item_ids):
        raise ConversationBusy(
            "Items of this conversation were added or deleted while the request was being read. Send it again."
        )
    if waiting:
        db.execute("DELETE FROM added_items WHERE conversation_id = ?", [conversation_id])


def _text_of(part: dict[str, Any]) -> str:
    """What is no text, a picture for example, is named by its type."""
    said = next((part[name] for name in ("text", "refusal") if name in part), None)
    return f"[{part['type']}]" if said is None else said
