"""Users and conversations in SQLite. Every method raises `StoreError` when the file fails.

Ownership is checked here: no row of `conversations` is read without its owner, except by the server's own threads. The
other tables have classes of their own in `tables/`.
"""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from model_runtime.interface.sampling_params import SamplingParams
from sessions.errors import ConversationNotFound, StoreError
from sessions.store.data_directory import DataDirectory
from sessions.store.database import Database
from sessions.store.records import Conversation, Totals
from sessions.store.search import FOUND, search_parameters
from sessions.store.tables.added_items import AddedItem, AddedItemTable, insert_items
from sessions.store.tables.beginnings import BeginningTable
from sessions.store.tables.bin import Bin
from sessions.store.tables.history_hashes import HistoryHashTable
from sessions.store.tables.keys import KeyStore
from sessions.store.tables.logins import LoginStore
from sessions.store.tables.losses import LossTable
from sessions.store.tables.messages import NEXT_TURN, MessageTable
from sessions.store.tables.responses import ResponseTable
from sessions.store.tables.segments import SegmentTable
from sessions.store.tables.served_time import Clock, ServedTime
from sessions.text import first_title
from sessions.text_search import Excerpt
from sessions.types import ConversationSettings, Origin

log = logging.getLogger(__name__)

TRY_PATIENCE_S = 0.2

_CONVERSATION_ID = re.compile(r"[0-9a-f]{32}")
_SELECT = """
    SELECT c.*, coalesce(m.ledger_start + length(m.token_ids) / 4, 0) AS ledger_tokens
    FROM conversations c LEFT JOIN messages m ON m.id = c.leaf_id WHERE c.binned_s IS NULL """
_INSERT = f"""
    INSERT OR IGNORE INTO conversations(
        id, owner_id, title, created_at, updated_at, settings, key, origin, root_id, turn_number)
    VALUES (?, ?, '', ?, ?, ?, ?, ?, ?, {NEXT_TURN})"""  # noqa: S608
_EMPTY = f"""
    SELECT id FROM conversations WHERE owner_id = ? AND leaf_id IS NULL AND key IS NULL AND origin = '{Origin.PAGE}'
    AND title = '' AND binned_s IS NULL AND id NOT IN (SELECT value FROM json_each(?))
    AND NOT EXISTS (SELECT 1 FROM added_items a WHERE a.conversation_id = conversations.id)
    ORDER BY turn_number DESC, rowid DESC LIMIT 1"""  # noqa: S608
_USED_AGAIN = f"UPDATE conversations SET updated_at = ?, turn_number = {NEXT_TURN} WHERE id = ?"  # noqa: S608
_FIRST_TITLE = "UPDATE conversations SET title_by = 'first words', title = ? WHERE id = ? AND title = ''"
_NEWEST_FIRST = " ORDER BY c.turn_number DESC, c.rowid DESC"  # the clock may be set back between two turns


class Store:
    """The database of one data directory, whose locks it holds until `close`."""

    def __init__(self, data_dir: Path) -> None:
        self._directory = DataDirectory(data_dir)
        try:
            self.database = Database(self._directory.database_path)
            self.logins = LoginStore(self.database)
        except StoreError:
            self._directory.close()
            raise
        self.messages = MessageTable(self.database)
        self.segments = SegmentTable(self.database)
        self.history_hashes = HistoryHashTable(self.database)
        self.beginnings = BeginningTable(self.database)
        self.losses = LossTable(self.database)
        self.keys = KeyStore(self.database)
        self.bin = Bin(self.database)
        self.responses = ResponseTable(self.database)
        self.added_items = AddedItemTable(self.database)

    @property
    def kv_dir(self) -> Path:
        """The folder of saved KVs."""
        return self._directory.kv_path

    @property
    def data_dir(self) -> Path:
        """The data directory."""
        return self._directory.path

    @property
    def trouble(self) -> str:
        """Why the last write failed, as a sentence; "" when it succeeded."""
        return self.database.trouble

    def moved(self) -> str:
        """A sentence if the database was deleted or replaced since it was opened; otherwise ""."""
        return self.database.moved()

    def try_to_write(self) -> None:
        """Raises `StoreError` while nothing can be stored."""
        with self.database.write(TRY_PATIENCE_S) as db:
            db.execute("INSERT OR REPLACE INTO last_try VALUES (1, ?)", [time.time()])

    def served_time(self, clock: Clock) -> ServedTime:
        """How long this directory has been served, measured with this clock."""
        return ServedTime(self.database, clock)

    def wal_bytes(self) -> int:
        """The size of the WAL: at most this much is not in the database file yet."""
        return self.database.wal_bytes()

    def checkpoint(self) -> bool:
        """Moves the WAL into the database file. False while another thread or program uses the database."""
        return self.database.checkpoint()

    def close(self) -> None:
        """Closes the database and releases the data directory. May be called twice."""
        self.database.close()
        self._directory.close()

    def totals(self, owner_id: str) -> Totals:
        with self.database.read() as db:
            row = db.execute("SELECT saved_s_total, reused_tokens_total FROM users WHERE id = ?", [owner_id]).fetchone()
        return Totals(*row) if row else Totals(0.0, 0)

    def create_conversation(
        self, owner_id: str, settings: ConversationSettings, taken: Sequence[str] = ()
    ) -> Conversation:
        """A new conversation, or an empty one without a name that the owner has already, with the settings that it
        has. `taken` are ids that are not used again, because other tabs show them."""
        now = time.time()
        with self.database.write() as db:
            db.execute("INSERT OR IGNORE INTO users(id, created_at) VALUES (?, ?)", [owner_id, now])
            empty = db.execute(_EMPTY, [owner_id, json.dumps(list(taken))]).fetchone()
            conversation_id = str(empty[0]) if empty else uuid.uuid4().hex
            if empty:
                db.execute(_USED_AGAIN, [now, conversation_id])
            else:
                dumped = _dump(settings)
                db.execute(_INSERT, [conversation_id, owner_id, now, now, dumped, None, Origin.PAGE, ""])
        return self.conversation(owner_id, conversation_id)

    def add_conversation(
        self,
        owner_id: str,
        conversation_id: str,
        settings: ConversationSettings,
        key: str | None,
        root_id: str = "",
        metadata: str = "",
        items: Sequence[AddedItem] = (),
    ) -> bool:
        """Adds a conversation for an API client. `key` is the client's name for it, `root_id` and `metadata` as in
        `Conversation`, `items` what is said in it without an answer. False if the key is taken."""
        now, origin = time.time(), Origin.ONE_OFF if key is None else Origin.PROGRAM
        with self.database.write() as db:
            db.execute("INSERT OR IGNORE INTO users(id, created_at) VALUES (?, ?)", [owner_id, now])
            row = [conversation_id, owner_id, now, now, _dump(settings), key, origin, root_id]
            if not db.execute(_INSERT, row).rowcount:
                return False
            if metadata:
                db.execute("UPDATE conversations SET metadata = ? WHERE id = ?", [metadata, conversation_id])
            insert_items(db, conversation_id, items)
            db.execute(_FIRST_TITLE, [_title(items), conversation_id])
        return True

    def add_items(self, conversation_id: str, items: Sequence[AddedItem]) -> None:
        """Adds what is said without an answer, which is a use of the conversation. Inside its claim."""
        with self.database.write() as db:
            insert_items(db, conversation_id, items)
            db.execute(_FIRST_TITLE, [_title(items), conversation_id])
            db.execute(_USED_AGAIN, [time.time(), conversation_id])

    def with_key(self, owner_id: str, key: str) -> str | None:
        """The id of the owner's conversation with this key."""
        with self.database.read() as db:
            sql = "SELECT id FROM conversations WHERE owner_id = ? AND key = ?"
            row = db.execute(sql, [owner_id, key]).fetchone()
        return str(row[0]) if row else None

    def conversations(self, owner_id: str, search: str = "", most: int | None = None) -> list[Conversation]:
        """The owner's conversations, newest first; with `search` those whose title or messages contain it, each with
        the place in its messages. At most `most`."""
        sql = FOUND if search.strip() else _SELECT + "AND c.owner_id = :owner"
        parameters = {"owner": owner_id, **search_parameters(search)}
        with self.database.read() as db:
            limit = "" if most is None else f" LIMIT {most:d}"
            return [_conversation(row) for row in db.query(sql + _NEWEST_FIRST + limit, parameters)]

    def conversation(self, owner_id: str, conversation_id: str) -> Conversation:
        """Raises `ConversationNotFound` if it does not exist or belongs to another owner."""
        row = None
        if isinstance(conversation_id, str) and _CONVERSATION_ID.fullmatch(conversation_id):
            with self.database.read() as db:
                row = next(db.query(_SELECT + "AND c.id = ? AND c.owner_id = ?", [conversation_id, owner_id]), None)
        if row is None:
            raise ConversationNotFound("This conversation does not exist. It may have been deleted in another tab.")
        return _conversation(row)

    def every_conversation(self) -> list[Conversation]:
        """The conversations of all owners, for the server itself and its maintenance commands."""
        with self.database.read() as db:
            return [_conversation(row) for row in db.query(_SELECT + _NEWEST_FIRST)]

    def troubles(self) -> list[str]:
        """What SQLite's integrity check finds wrong with the file, and rows that refer to missing rows."""
        with self.database.read() as db:
            found = [str(row[0]) for row in db.execute("PRAGMA integrity_check").fetchall()]
            dangling = db.execute("PRAGMA foreign_key_check").fetchall()
        broken = [f"a row of {row[0]} refers to a missing row of {row[2]}" for row in dangling]
        return [*(text for text in found if text != "ok"), *broken]

    def title(self, conversation_id: str) -> str:
        """For the memory log; "" if the conversation was deleted."""
        with self.database.read() as db:
            row = db.execute("SELECT title FROM conversations WHERE id = ?", [conversation_id]).fetchone()
        return str(row[0]) if row else ""

    def rename(self, conversation_id: str, title: str) -> None:
        with self.database.write() as db:
            db.execute("UPDATE conversations SET title = ?, title_by = 'person' WHERE id = ?", [title, conversation_id])

    def take_model_title(self, conversation_id: str, title: str) -> bool:
        """Stores the model's title, unless a person gave one. With "" the first words stay, and no title is asked for
        again."""
        with self.database.write() as db:
            cursor = db.execute(
                "UPDATE conversations SET title_by = 'model', title = CASE ? WHEN '' THEN title ELSE ? END"
                " WHERE id = ? AND title_by = 'first words'",
                [title, title, conversation_id],
            )
            return bool(cursor.rowcount)

    def set_settings(self, conversation_id: str, settings: ConversationSettings) -> None:
        with self.database.write() as db:
            db.execute("UPDATE conversations SET settings = ? WHERE id = ?", [_dump(settings), conversation_id])

    def set_metadata(self, conversation_id: str, metadata: str) -> None:
        with self.database.write() as db:
            db.execute("UPDATE conversations SET metadata = ? WHERE id = ?", [metadata, conversation_id])

    def set_pinned(self, conversation_id: str, is_pinned: bool) -> None:
        with self.database.write() as db:
            db.execute("UPDATE conversations SET is_pinned = ? WHERE id = ?", [is_pinned, conversation_id])

    def pinned_conversations(self) -> list[Conversation]:
        """The pinned conversations of all owners, most recently used first."""
        with self.database.read() as db:
            sql = _SELECT + "AND c.is_pinned" + _NEWEST_FIRST
            return [_conversation(row) for row in db.query(sql)]

    def delete(self, conversation_id: str) -> None:
        """Deletes a conversation with its messages and receipts."""
        with self.database.write() as db:
            db.execute("DELETE FROM conversations WHERE id = ?", [conversation_id])


def _title(items: Sequence[AddedItem]) -> str:
    """The first words of what a person said; "" where nobody did."""
    said = (item.said for item in items)
    return first_title(next((text for role, text in said if role == "user"), ""))


def _conversation(row: dict[str, Any]) -> Conversation:
    return Conversation(
        conversation_id=row["id"],
        owner_id=row["owner_id"],
        title=row["title"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        leaf_id=row["leaf_id"],
        settings=_load(row["settings"]),
        ledger_tokens=row["ledger_tokens"],
        is_pinned=bool(row["is_pinned"]),
        key=row["key"],
        has_first_title=row["title_by"] == "first words",
        numerics=row["numerics"],
        root_id=row["root_id"],
        metadata=row["metadata"],
        system_items=row["system_items"],
        origin=Origin(row["origin"]),
        found=Excerpt(*json.loads(row["found"])) if row.get("found") else None,
    )


def _dump(settings: ConversationSettings) -> str:
    return json.dumps(asdict(settings))


@lru_cache(maxsize=256)
def _load(stored: str) -> ConversationSettings:
    """Sampling settings that this version refuses become the default, so that a conversation can always be opened.

    Cached, because most of a list's conversations share their settings: for 500 of them, parsing took 8 of 15 ms.
    """
    fields = json.loads(stored)
    try:
        sampling = SamplingParams(**{name: _frozen(value) for name, value in fields["sampling"].items()})
    except (KeyError, TypeError, ValueError):
        log.warning("stored_sampling_refused")
        sampling = SamplingParams()
    return ConversationSettings(sampling, fields["system_prompt"], fields.get("template_variables", ""))


def _frozen(value: Any) -> Any:
    """Lists, as JSON has them, as tuples."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
