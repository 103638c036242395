"""The tables and columns that a database must have. Another program, or a repair that saved only a part, may have taken
some away; without this check a server starts, and each message that needs them fails."""

from __future__ import annotations

import sqlite3
from functools import cache

import sqlite_utils

from sessions.store.migrations import MIGRATIONS


def missing(db: sqlite_utils.Database) -> list[str]:
    """Names of the tables, or "TABLE.COLUMN", that all migrations have made and this database lacks."""
    lacking: list[str] = []
    for table, columns in _expected().items():
        found = _columns(db, table)
        lacking += [f"{table}.{column}" for column in columns if column not in found] if found else [table]
    return lacking


@cache
def _expected() -> dict[str, tuple[str, ...]]:
    """The columns of each table of a new database."""
    db = sqlite_utils.Database(sqlite3.connect(":memory:"))
    try:
        MIGRATIONS.apply(db)
        return {name: tuple(_columns(db, name)) for name in db.table_names()}
    finally:
        db.conn.close()


def _columns(db: sqlite_utils.Database, table: str) -> list[str]:
    return [str(name) for (name,) in db.execute("SELECT name FROM pragma_table_info(?)", (table,))]
