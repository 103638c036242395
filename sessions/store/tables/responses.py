"""The answers that clients of the Responses API name, each with what its request said of itself."""

from __future__ import annotations

from dataclasses import dataclass

import sqlite_utils

from sessions.store.database import Database


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """`body` is JSON of the layer above."""

    message_id: int
    conversation_id: str
    body: str


class ResponseTable:
    """Raises `StoreError` when the file fails. A response goes with its message."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, owner_id: str, response_id: str) -> StoredResponse | None:
        """None for another owner's, and where the conversation was deleted or is in the bin."""
        with self._database.read() as db:
            row = db.execute(
                "SELECT r.message_id, m.conversation_id, r.body FROM responses r JOIN messages m ON m.id = r.message_id"
                " JOIN conversations c ON c.id = m.conversation_id"
                " WHERE r.id = ? AND c.owner_id = ? AND c.binned_s IS NULL",
                [response_id, owner_id],
            ).fetchone()
        return StoredResponse(int(row[0]), str(row[1]), str(row[2])) if row else None

    def delete(self, response_id: str) -> None:
        with self._database.write() as db:
            db.execute("DELETE FROM responses WHERE id = ?", [response_id])


def insert_response(db: sqlite_utils.Database, response_id: str, body: str, message_id: int) -> None:
    """Of a message of the same transaction."""
    db.execute("INSERT INTO responses (id, message_id, body) VALUES (?, ?, ?)", [response_id, message_id, body])
