"""What holds for the rows of every export. An export may come from anyone: what its rows say is not believed.

Numbers of messages are the same in every data directory, so a number that is not among the export's own rows would be
another owner's message here. A row of another owner, or a log-in for an owner who is here already, would open what is
not the exporter's.
"""

from __future__ import annotations

import json
import sqlite3
from enum import StrEnum

import sqlite_utils

from model_runtime.interface.events import FinishReason
from model_runtime.interface.segments import key_of
from sessions.errors import SessionError, StoreError
from sessions.ledger import system_items
from sessions.maintenance.owner_rows import OF_OWNERS
from sessions.memory.saved.disk import owned
from sessions.store.store import Store
from sessions.store.tables.added_items import KINDS, AddedItem
from sessions.store.tables.losses import Cause
from sessions.types import SYSTEM_ROLES, MissReason, Origin, Tier

MOST = 2**40  # of numbers of messages and turns: an import continues the numbers that are here, which end at 2**63
LOCAL_OWNER = "local"  # the owner of every server without a password, who has no log-in
CREDENTIALS = ("api_keys", "logins", "browser_owners", "recovery_codes")
_OWNED = ("conversations", "segments", "message_links", *CREDENTIALS)


def _elsewhere(column: str, more: str = "") -> str:
    """Whether a column of `t` names no message of the conversation of `t`. `more` holds for that message `o`, too."""
    return (
        f"t.{column} IS NOT NULL AND NOT EXISTS (SELECT 1 FROM messages o WHERE o.id = t.{column}"  # noqa: S608
        f" AND o.conversation_id = {'t.id' if column == 'leaf_id' else 't.conversation_id'}{more})"
    )


# What may not be: the table `t`, when, and how it is said.
_RULES = (
    ("users", "t.id != :owner", "a row of another owner"),
    *((table, "t.owner_id != :owner", "a row of another owner") for table in _OWNED),
    ("conversations", "length(t.id) != 32 OR t.id GLOB '*[^0-9a-f]*'", "an id that is no conversation's"),
    ("segments", "length(t.key) != 40 OR t.key GLOB '*[^0-9a-f]*'", "a key that is not 40 hexadecimal digits"),
    ("messages", f"t.id NOT BETWEEN 1 AND {MOST}", "a number that is no message's"),
    ("conversations", f"t.turn_number NOT BETWEEN 0 AND {MOST}", "a number that is no turn's"),
    ("messages", _elsewhere("parent_id", " AND o.id < t.id"), "a message below one of another conversation"),
    ("messages", _elsewhere("first_part_id", " AND o.id < t.id"), "a part of a message of another conversation"),
    ("conversations", _elsewhere("leaf_id"), "a last message of another conversation"),
    ("kv_losses", f"t.message_id != 0 AND {_elsewhere('message_id')}", "a message of another conversation"),
    ("messages", "t.ledger_start < 0 OR t.preamble_tokens < 0", "a place before the first token"),
    ("segments", "t.start_tokens < 0 OR t.tokens < 0 OR t.bytes < 0", "a place before the first token"),
    ("api_keys", "t.owner_id NOT GLOB 'key:*'", "a key of an owner who is no key's"),
    *((table, f"t.owner_id = '{LOCAL_OWNER}'", "a log-in of an owner who has none") for table in CREDENTIALS),
)
_VALUES: dict[tuple[str, str], type[StrEnum]] = {
    ("messages", "finish_reason"): FinishReason,
    ("conversations", "origin"): Origin,
    ("kv_losses", "cause"): Cause,
    ("receipts", "tier_before"): Tier,
    ("receipts", "miss_reason"): MissReason,
}


class _ImpossibleError(StoreError):
    """A rule is broken."""


def refuse_impossible(export: Store, owner_id: str) -> None:
    """Raises `StoreError` with the first thing in an export of this owner that no export has."""
    try:
        with export.database.read() as db:
            for table in sorted(OF_OWNERS):
                _refuse_types(db, table)
            for table, when, what in _RULES:
                count = _count(db, f"SELECT count(*) FROM {table} t WHERE {when}", owner_id)  # noqa: S608
                _refuse(bool(count), table, what)
            for (table, column), values in _VALUES.items():
                found = {row[0] for row in db.execute(f"SELECT DISTINCT {column} FROM {table}").fetchall()}  # noqa: S608
                _refuse(bool(found - {None, "", *values}), table, f"a {column} that there is not")
            dangling = db.execute("PRAGMA foreign_key_check").fetchone()
            _refuse(dangling is not None, str(dangling[0]) if dangling else "", "a row that refers to a missing one")
            numbers = [int(row[0]) for row in db.execute("SELECT id FROM messages ORDER BY id").fetchall()]
            settings = [str(row[0]) for row in db.execute("SELECT DISTINCT settings FROM conversations").fetchall()]
            _refuse_items(db)
        for row in export.segments.every():
            ids = export.segments.token_ids(row.key)
            keys = {key_of(row.parent_key, ids, owned(row.fingerprint, owner_id, is_long)) for is_long in (False, True)}
            _refuse(row.key not in keys, "segments", "a key that is not of its owner and its tokens")
        _read_everything(export, numbers, settings)
    except _ImpossibleError:
        raise
    except (SessionError, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        raise StoreError(f"A row of the export cannot be read ({error}). Nothing was imported.") from error


def refuse_taken(db: sqlite3.Connection, owner_id: str) -> None:
    """Raises `StoreError` when the database `there` would give a way to what is in `main` already."""
    here = [
        table
        for table, column in (("users", "id"), *((table, "owner_id") for table in _OWNED))
        if _count(db, f"SELECT count(*) FROM main.{table} WHERE {column} = :owner", owner_id)  # noqa: S608
    ]
    brought = sum(_count(db, f"SELECT count(*) FROM there.{table}", owner_id) for table in CREDENTIALS)  # noqa: S608
    if here and brought:
        raise StoreError(
            f"The owner {owner_id} is here already, and the export brings log-ins or keys, which would open what is "
            "here. Nothing was imported."
        )
    for what, sql in (
        ("segment", "segments t JOIN main.segments m ON m.key = t.key WHERE m.owner_id != :owner"),
        ("receipt", "receipts t JOIN main.conversations m ON m.id = t.shared_from WHERE m.owner_id != :owner"),
        ("fork", "conversations t JOIN main.conversations m ON m.id = t.root_id WHERE m.owner_id != :owner"),
    ):
        if _count(db, f"SELECT count(*) FROM there.{sql}", owner_id):  # noqa: S608
            raise StoreError(f"A {what} of the export names what is another owner's here. Nothing was imported.")


def refuse_dangling(db: sqlite3.Connection) -> None:
    """Raises `StoreError` when a row of `main` refers to a missing one. Before the commit."""
    dangling = db.execute("PRAGMA main.foreign_key_check").fetchone()
    if dangling is not None:
        raise StoreError(f"A row of {dangling[0]} would refer to a missing one here. Nothing was imported.")


def _refuse_types(db: sqlite_utils.Database, table: str) -> None:
    """SQLite stores any value in any column."""
    for _, name, declared, is_needed, _, is_key in db.execute(f"PRAGMA table_info({table})").fetchall():
        allowed = f"'{str(declared).lower()}'" + ("" if is_needed or is_key else ", 'null'")
        far = {"INTEGER": f" OR abs({name} / 2) > {2**52}", "REAL": f" OR abs({name}) > 1e15"}.get(declared, "")
        count = _count(db, f"SELECT count(*) FROM {table} WHERE typeof({name}) NOT IN ({allowed}){far}", "")  # noqa: S608
        _refuse(bool(count), table, f"a {name} that is none")


def _refuse_items(db: sqlite_utils.Database) -> None:
    for item_id, body in db.execute("SELECT id, body FROM added_items"):
        item = json.loads(body)
        is_one = isinstance(item, dict) and item.get("id") == item_id and item.get("type") in KINDS
        is_one = is_one and all(isinstance(said, str) for said in AddedItem(item_id, body).said)
        _refuse(not is_one, "added_items", "an item that is none")
    for (metadata,) in db.execute("SELECT metadata FROM conversations WHERE metadata != ''"):
        found = json.loads(metadata)
        is_one = isinstance(found, dict) and all(isinstance(value, str) for value in found.values())
        _refuse(not is_one, "conversations", "metadata that are none")
    for (kept,) in db.execute("SELECT system_items FROM conversations WHERE system_items != ''"):
        items = system_items.load(kept)
        is_one = all(isinstance(one.text, str) and one.role in SYSTEM_ROLES for one in (*items.head, *items.later))
        _refuse(not is_one, "conversations", "items of the system that are none")


def _read_everything(export: Store, numbers: list[int], settings: list[str]) -> None:
    """As the server will read it: what it cannot read would stop its start, for everyone."""
    for text in settings:
        fields = json.loads(text)
        _refuse(not isinstance(fields["system_prompt"], str), "conversations", "settings that are none")
        dict(fields["sampling"])
    for conversation in export.every_conversation():
        _ = [node.messages for node in export.messages.path(conversation.leaf_id)]
    for number in numbers:
        export.messages.view(number)


def _count(db: sqlite3.Connection | sqlite_utils.Database, sql: str, owner_id: str) -> int:
    return int(db.execute(sql, {"owner": owner_id}).fetchone()[0])


def _refuse(is_wrong: bool, table: str, what: str) -> None:
    if is_wrong:
        raise _ImpossibleError(f"The export has {what} ({table}), as no export has. Nothing was imported.")
