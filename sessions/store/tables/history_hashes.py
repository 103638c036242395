"""The links of stored messages, looked up by owner: nobody's history is found by anybody else's request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlite_utils

from sessions.store.database import Database

AT_ONCE = 500  # SQLite's oldest limit of parameters is 999
_FOUND = """
    SELECT l.link, l.message_id, m.conversation_id FROM message_links l JOIN messages m ON m.id = l.message_id
    JOIN conversations c ON c.id = m.conversation_id AND c.binned_s IS NULL"""
_NEWEST_FIRST = "ORDER BY c.turn_number DESC, l.message_id DESC"


@dataclass(frozen=True, slots=True)
class Found:
    """A stored message whose link was asked for."""

    message_id: int
    conversation_id: str


class HistoryHashTable:
    """Raises `StoreError` when the file fails."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def deepest(
        self,
        owner_id: str,
        history_hashes: Sequence[str],
        conversation_id: str | None = None,
        tokenizer: str | None = None,
    ) -> tuple[int, list[Found]]:
        """The first of `history_hashes` that the owner has a message for (in this conversation, if named; written
        with this tokenizer, if one is named), and all such messages, the conversation that was used last first.
        (-1, []) when there is none."""
        with self._database.read() as db:
            for start in range(0, len(history_hashes), AT_ONCE):
                asked = history_hashes[start : start + AT_ONCE]
                marks = ", ".join("?" * len(asked))
                where = (
                    f"WHERE l.owner_id = ? AND l.link IN ({marks}) AND m.conversation_id = ifnull(?, c.id)"
                    " AND m.tokenizer_fingerprint = ifnull(?, m.tokenizer_fingerprint)"
                )
                sql = f"{_FOUND} {where} {_NEWEST_FIRST}"
                rows = db.execute(sql, [owner_id, *asked, conversation_id, tokenizer]).fetchall()
                by_link: dict[str, list[Found]] = {}
                for link, message_id, found_in in rows:
                    by_link.setdefault(str(link), []).append(Found(int(message_id), str(found_in)))
                for place, link in enumerate(asked):
                    if link in by_link:
                        return start + place, by_link[link]
        return -1, []


def insert_link(db: sqlite_utils.Database, message_id: int, conversation_id: str, link: str, parts: str) -> None:
    """Inside a transaction of `MessageTable`. `parts`: the messages that the node stands for, "" for one of its own."""
    if link or parts:
        db.execute(
            "INSERT OR REPLACE INTO message_links SELECT ?, owner_id, ?, ? FROM conversations WHERE id = ?",
            [message_id, link, parts, conversation_id],
        )
