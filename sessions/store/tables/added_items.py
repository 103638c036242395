"""What clients added to a conversation without asking for an answer. The tree has questions with their answers alone,
so these wait behind its path until a turn takes them in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlite_utils

from sessions.store.database import Database


@dataclass(frozen=True, slots=True)
class AddedItem:
    """`body` is JSON of the layer above."""

    item_id: str
    body: str


class AddedItemTable:
    """Raises `StoreError` when the file fails. Items go with their conversation."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, conversation_id: str, items: Sequence[AddedItem]) -> None:
        """Behind those that are there. Does nothing if the conversation was deleted."""
        sql = "INSERT INTO added_items(id, conversation_id, body) SELECT ?, id, ? FROM conversations WHERE id = ?"
        with self._database.write() as db:
            for item in items:
                db.execute(sql, [item.item_id, item.body, conversation_id])

    def of(self, conversation_id: str) -> tuple[AddedItem, ...]:
        """In the order in which they were added."""
        sql = "SELECT id, body FROM added_items WHERE conversation_id = ? ORDER BY number"
        with self._database.read() as db:
            return tuple(AddedItem(str(row[0]), str(row[1])) for row in db.execute(sql, [conversation_id]).fetchall())

    def count(self, conversation_id: str) -> int:
        with self._database.read() as db:
            sql = "SELECT count(*) FROM added_items WHERE conversation_id = ?"
            return int(db.execute(sql, [conversation_id]).fetchone()[0])

    def delete(self, conversation_id: str, item_id: str) -> bool:
        """Whether it was there."""
        with self._database.write() as db:
            sql = "DELETE FROM added_items WHERE id = ? AND conversation_id = ?"
            return bool(db.execute(sql, [item_id, conversation_id]).rowcount)


def take_in(db: sqlite_utils.Database, item_ids: Sequence[str]) -> None:
    """They are messages of the tree now. Inside the transaction of `MessageTable` that stores these."""
    for item_id in item_ids:
        db.execute("DELETE FROM added_items WHERE id = ?", [item_id])
