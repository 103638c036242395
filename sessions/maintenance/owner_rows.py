"""Which rows of a database belong to one owner, and how they get into another database."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

_CONVERSATIONS = "(SELECT id FROM there.conversations WHERE owner_id = :owner)"
_MESSAGES = f"(SELECT id FROM there.messages WHERE conversation_id IN {_CONVERSATIONS})"  # noqa: S608


@dataclass(frozen=True, slots=True)
class _Rows:
    """The owner's rows of a table of the database `there`. `message_ids` are columns that hold the number of a message;
    `changed` are columns with another value here, as SQL."""

    table: str
    which: str
    message_ids: tuple[str, ...] = ()
    changed: tuple[tuple[str, str], ...] = ()


_BINNED = "CASE WHEN binned_s IS NULL THEN NULL ELSE ifnull((SELECT observed_s FROM main.observed_time), 0) END"
_TURN = "turn_number + :turns"
_OWNERS = (
    _Rows(
        "conversations",
        "owner_id = :owner",
        ("leaf_id",),
        (("binned_s", _BINNED), ("turn_number", _TURN)),  # each directory has its own clock and its own numbers
    ),
    _Rows("messages", f"conversation_id IN {_CONVERSATIONS}", ("id", "parent_id", "first_part_id")),
    _Rows("receipts", f"message_id IN {_MESSAGES}", ("message_id",)),
    _Rows("message_links", f"message_id IN {_MESSAGES}", ("message_id",)),
    _Rows("added_items", f"conversation_id IN {_CONVERSATIONS} ORDER BY number", changed=(("number", "NULL"),)),
    _Rows("responses", f"message_id IN {_MESSAGES}", ("message_id",)),
    _Rows(
        "kv_losses",
        f"conversation_id IN {_CONVERSATIONS}",
        changed=(("message_id", "iif(message_id = 0, 0, message_id + :shift)"),),  # 0: of no turn
    ),
    _Rows("api_keys", "owner_id = :owner"),
    _Rows("logins", "owner_id = :owner"),
    _Rows("browser_owners", "owner_id = :owner"),
    _Rows("recovery_codes", "owner_id = :owner"),
    _Rows(
        "spent",
        "what = 'old cookie ' || :owner"
        " OR what IN (SELECT 'code ' || hash FROM there.recovery_codes WHERE owner_id = :owner)",
    ),
)
_SAVED = (
    _Rows("segments", "owner_id = :owner"),
    _Rows("segment_references", f"conversation_id IN {_CONVERSATIONS}"),
)
# The same row in both is the same log-in, browser, code or segment; everything else must be new.
_MAY_BE_THERE = frozenset({"logins", "browser_owners", "recovery_codes", "spent", "segments", "segment_references"})
OF_OWNERS = frozenset({"users", *(rows.table for rows in (*_OWNERS, *_SAVED))})
# `left_alone` is about an owner, but in seconds of a directory's own clock: there it begins again.
OF_THE_DIRECTORY = frozenset({"api_key_history", "kv_served", "last_try", "left_alone", "observed_time"})

_USER = """
    INSERT INTO main.users SELECT * FROM there.users WHERE id = :owner
    ON CONFLICT(id) DO UPDATE SET saved_s_total = saved_s_total + excluded.saved_s_total,
        reused_tokens_total = reused_tokens_total + excluded.reused_tokens_total"""


def copy_owner(db: sqlite3.Connection, owner_id: str, with_saved: bool) -> None:
    """Copies the owner's rows from the attached database `there` into `main`, with new numbers for messages. Inside a
    transaction; both have the same tables. Raises `sqlite3.IntegrityError` where something is there already."""
    values = {
        "owner": owner_id,
        "shift": _one(db, "SELECT ifnull(max(seq), 0) FROM main.sqlite_sequence WHERE name = 'messages'"),
        "turns": _one(db, "SELECT ifnull(max(turn_number), 0) FROM main.conversations"),
    }
    db.execute(_USER, values)
    for rows in (*_OWNERS, *(_SAVED if with_saved else ())):
        db.execute(_sql(db, rows), values)


def _sql(db: sqlite3.Connection, rows: _Rows) -> str:
    columns = [str(row[1]) for row in db.execute(f"PRAGMA main.table_info({rows.table})")]
    changed = {**{name: f"{name} + :shift" for name in rows.message_ids}, **dict(rows.changed)}
    values = ", ".join(changed.get(name, name) for name in columns)
    verb = "INSERT OR IGNORE" if rows.table in _MAY_BE_THERE else "INSERT"
    return (
        f"{verb} INTO main.{rows.table}({', '.join(columns)}) SELECT {values} FROM there.{rows.table}"  # noqa: S608
        f" WHERE {rows.which}"
    )


def _one(db: sqlite3.Connection, sql: str) -> int:
    return int(db.execute(sql).fetchone()[0])
