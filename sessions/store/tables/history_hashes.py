"""The history hashes of stored messages. They are looked up by owner: a request only finds its owner's histories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlite_utils

from sessions.store.database import Database

MAX_PARAMETERS = 500  # older SQLite versions allow 999
_FOUND = """
    SELECT l.link, l.message_id, m.conversation_id FROM message_links l JOIN messages m ON m.id = l.message_id
    JOIN conversations c ON c.id = m.conversation_id AND c.binned_s IS NULL"""
_NEWEST_FIRST = "ORDER BY c.turn_number DESC, l.message_id DESC"


@dataclass(frozen=True, slots=True)
class Found:
    """A stored message with one of the hashes that were looked up."""

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
        """The index of the first of `history_hashes` that a message of the owner has (in this conversation, if given;
        written with this tokenizer, if given), and all messages with that hash, those of the most recently used
        conversation first. (-1, []) if there is none."""
        with self._database.read() as db:
            for start in range(0, len(history_hashes), MAX_PARAMETERS):
                batch = history_hashes[start : start + MAX_PARAMETERS]
                marks = ", ".join("?" * len(batch))
                where = (
                    f"WHERE l.owner_id = ? AND l.link IN ({marks}) AND m.conversation_id = ifnull(?, c.id)"
                    " AND m.tokenizer_fingerprint = ifnull(?, m.tokenizer_fingerprint)"
                )
                sql = f"{_FOUND} {where} {_NEWEST_FIRST}"
                rows = db.execute(sql, [owner_id, *batch, conversation_id, tokenizer]).fetchall()
                by_hash: dict[str, list[Found]] = {}
                for history_hash, message_id, found_in in rows:
                    by_hash.setdefault(str(history_hash), []).append(Found(int(message_id), str(found_in)))
                for index, history_hash in enumerate(batch):
                    if history_hash in by_hash:
                        return start + index, by_hash[history_hash]
        return -1, []

    def beginning_with(self, owner_id: str, start: str, most: int) -> list[str]:
        """The newest `most` of the owner's hashes that begin with `start`, each once."""
        sql = """
            SELECT link FROM message_links WHERE owner_id = ? AND link >= ? AND link < ?
            GROUP BY link ORDER BY max(message_id) DESC LIMIT ?"""
        with self._database.read() as db:
            return [str(row[0]) for row in db.execute(sql, [owner_id, start, f"{start}\x7f", most]).fetchall()]


def insert_history_hash(
    db: sqlite_utils.Database,
    message_id: int,
    conversation_id: str,
    history_hash: str,
    parts: str,
    tools: str | None = None,
) -> None:
    """Inside a transaction of `MessageTable`. `parts` are the messages of a node, "" for a single one; `tools` as in
    `Node`."""
    if history_hash or parts:
        db.execute(
            "INSERT OR REPLACE INTO message_links (message_id, owner_id, link, parts, tools)"
            " SELECT ?, owner_id, ?, ?, ? FROM conversations WHERE id = ?",
            [message_id, history_hash, parts, tools, conversation_id],
        )
