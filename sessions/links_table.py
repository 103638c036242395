"""The links of stored messages, looked up by owner: nobody's history is found by anybody else's request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlite_utils

from sessions.database import Database

AT_ONCE = 500  # SQLite's oldest limit of parameters is 999


@dataclass(frozen=True, slots=True)
class Found:
    """A stored message whose link was asked for."""

    message_id: int
    conversation_id: str


class LinksTable:
    """Raises `StoreError` when the file fails."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def deepest(self, owner_id: str, links: Sequence[str]) -> tuple[int, list[Found]]:
        """The first of `links` that the owner has a message for, and all such messages, the conversation that was used
        last first. (-1, []) when there is none."""
        with self._database.read() as db:
            for start in range(0, len(links), AT_ONCE):
                asked = links[start : start + AT_ONCE]
                marks = ", ".join("?" * len(asked))
                sql = f"SELECT DISTINCT link FROM message_links WHERE owner_id = ? AND link IN ({marks})"  # noqa: S608
                known = {row[0] for row in db.execute(sql, [owner_id, *asked])}
                if known:
                    place = next(n for n, link in enumerate(asked) if link in known)
                    return start + place, _with_link(db, owner_id, asked[place])
        return -1, []


def _with_link(db: sqlite_utils.Database, owner_id: str, link: str) -> list[Found]:
    rows = db.execute(
        "SELECT l.message_id, m.conversation_id FROM message_links l JOIN messages m ON m.id = l.message_id"
        " JOIN conversations c ON c.id = m.conversation_id WHERE l.owner_id = ? AND l.link = ?"
        " ORDER BY c.updated_at DESC, l.message_id DESC LIMIT 50",
        [owner_id, link],
    )
    return [Found(int(row[0]), str(row[1])) for row in rows]


def insert_link(db: sqlite_utils.Database, message_id: int, conversation_id: str, link: str, parts: str) -> None:
    """Inside a transaction of `MessageTree`. `parts`: the messages that the node stands for, "" for one of its own."""
    if link or parts:
        db.execute(
            "INSERT OR REPLACE INTO message_links SELECT ?, owner_id, ?, ? FROM conversations WHERE id = ?",
            [message_id, link, parts, conversation_id],
        )
