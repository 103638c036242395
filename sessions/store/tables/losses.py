"""Why a conversation's saved memory is missing, kept across restarts so that its next receipt can give the reason.

There is one row per conversation and numerics, because each model and setting has saved memory of its own. Every turn
writes a row that says "not saved yet", which is removed once all of the turn is on disk. Code that deletes saved
memory, or fails to write it, puts its reason there instead. So after a restart the row is the reason, and without a row
there is no known loss.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import sqlite_utils

from sessions.store.database import Database


class Cause(StrEnum):
    """Each comment ends with what `SavedLoss.detail` then holds, if anything."""

    UNSAVED = "unsaved"  # the last turn has not been saved yet
    DISK_OFF = "disk_off"  # the last turn was not to be saved: the disk budget is 0
    NOT_SAVED = "not_saved"  # it could not be saved; why, as the end of a sentence
    DISK_FULL = "disk_full"
    DISK_BUDGET = "disk_budget"  # deleted to make room; the budget
    CLOCK = "clock"  # deleted to make room after the clock had jumped; the budget, and how far the clock was off
    FILES_MISSING = "files_missing"  # deleted by something other than Keepwarm
    CLEARED = "cleared"  # `keepwarm cache clear`
    MOVED = "moved"  # `keepwarm import` without --warm
    REFUSED = "refused"  # damaged; what was found
    BY_HAND = "by_hand"  # dropped in the memory panel


PENDING = (Cause.UNSAVED, Cause.DISK_OFF)


@dataclass(frozen=True, slots=True)
class SavedLoss:
    """Why a conversation's saved memory is incomplete."""

    cause: Cause
    detail: str = ""


class LossTable:
    """Every method is one transaction and raises `StoreError` when the file fails. `numerics` is what the saved
    memory was computed with (`segments.with_format`)."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._kept_lock = threading.Lock()
        self._kept: dict[tuple[str, str], SavedLoss] = {}

    def of(self, conversation_id: str, numerics: str) -> SavedLoss | None:
        """None if everything that was saved with these numerics should be there."""
        with self._database.read() as db:
            sql = "SELECT cause, detail FROM kv_losses WHERE conversation_id = ? AND numerics = ?"
            row = db.execute(sql, [conversation_id, numerics]).fetchone()
        return SavedLoss(Cause(row[0]), str(row[1])) if row else None

    def record(self, lost: Iterable[tuple[str, str]], loss: SavedLoss) -> None:
        """Records that some saved memory of each pair of conversation and numerics is gone, or could not be saved."""
        with self._database.write() as db:
            for conversation_id, numerics in set(lost):
                _put(db, conversation_id, numerics, loss)

    def keep(self, lost: tuple[str, str], loss: SavedLoss) -> None:
        """Remembers a loss that could not be recorded, for `record_kept`."""
        with self._kept_lock:
            self._kept[lost] = loss

    def record_kept(self) -> None:
        """Records what was kept. Call it after the answers that were kept too are stored, which say "not saved yet"."""
        with self._kept_lock:
            for lost, loss in list(self._kept.items()):
                self.record([lost], loss)
                del self._kept[lost]

    def saved(self, conversation_id: str, numerics: str, message_id: int | None = None) -> None:
        """Records that everything up to the turn of this answer (None: every turn) is on disk."""
        with self._kept_lock:
            self._kept.pop((conversation_id, numerics), None)
        with self._database.write() as db:
            sql = "DELETE FROM kv_losses WHERE conversation_id = ? AND numerics = ?"
            db.execute(sql + " AND message_id <= ifnull(?, message_id)", [conversation_id, numerics, message_id])


def _put(db: sqlite_utils.Database, conversation_id: str, numerics: str, loss: SavedLoss) -> None:
    """Inside a transaction. Keeps the row's turn."""
    db.execute(
        "INSERT INTO kv_losses SELECT id, ?, ?, ?, 0 FROM conversations WHERE id = ?"
        " ON CONFLICT DO UPDATE SET cause = excluded.cause, detail = excluded.detail",
        [numerics, loss.cause, loss.detail, conversation_id],
    )


def turn_begins(db: sqlite_utils.Database, conversation_id: str, numerics: str, message_id: int, cause: Cause) -> None:
    """Inside a transaction. Keeps an earlier cause, which the receipt of this turn will state."""
    db.execute(
        "INSERT INTO kv_losses VALUES (?, ?, ?, '', ?) ON CONFLICT DO UPDATE SET message_id = excluded.message_id",
        [conversation_id, numerics, cause, message_id],
    )


def turn_ends(db: sqlite_utils.Database, message_id: int, cause: Cause) -> None:
    """Inside a transaction. Replaces an earlier cause: what was lost has been read again, and must be saved again."""
    db.execute(
        "INSERT OR REPLACE INTO kv_losses SELECT c.id, c.numerics, ?, '', m.id FROM messages m"
        " JOIN conversations c ON c.id = m.conversation_id WHERE m.id = ?",
        [cause, message_id],
    )
