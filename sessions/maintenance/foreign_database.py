"""A database that was made elsewhere, written anew: its rows in tables of our own, and nothing of its schema."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path

import sqlite_utils

from sessions.errors import StoreError
from sessions.store.migrations import MIGRATIONS


def write_anew(origin: Path, target: Path, tables: Iterable[str]) -> None:
    """Makes the database `target` from the rows of `tables` in `origin`, as the version stores them that made it.
    Whatever else is in `origin` (triggers, views, other tables and columns, indexes) is not read. Raises `StoreError`.

    The precautions are those of https://www.sqlite.org/security.html for files of unknown origin."""
    with contextlib.closing(sqlite3.connect(target.resolve().as_uri(), uri=True)) as db:
        db.execute("PRAGMA trusted_schema = OFF")
        db.execute("PRAGMA cell_size_check = ON")
        db.execute("PRAGMA synchronous = OFF")  # a copy that is used at once, and deleted
        try:
            db.execute("ATTACH ? AS there", [f"{origin.resolve().as_uri()}?mode=ro&immutable=1"])
            _refuse_damaged(db, origin)
            steps = _steps(db, origin)
            pending = (one.name for one in MIGRATIONS._migrations if one.name not in steps)
            MIGRATIONS.apply(sqlite_utils.Database(db, execute_plugins=False), stop_before=next(pending, None))
            known = {str(row[0]) for row in db.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'")}
            with db:
                for table in sorted(known.intersection(tables)):
                    _copy(db, table, origin)
        except (sqlite3.DatabaseError, sqlite3.Warning) as error:
            if "full" in str(error) or "I/O" in str(error):
                raise
            raise StoreError(f"{_not_ours(origin)} ({error}). Nothing was imported.") from error


def _refuse_damaged(db: sqlite3.Connection, origin: Path) -> None:
    found = str(db.execute("PRAGMA there.quick_check(1)").fetchone()[0])
    if found != "ok":
        raise StoreError(f"The database of {origin.parent} is damaged ({found}). Nothing was imported.")


def _steps(db: sqlite3.Connection, origin: Path) -> set[str]:
    """The migrations that the other version had: the first ones of ours."""
    _refuse_no_table(db, MIGRATIONS.migrations_table, origin)
    sql = f"SELECT name FROM there.{MIGRATIONS.migrations_table} NOT INDEXED WHERE migration_set = ?"  # noqa: S608
    found = {str(row[0]) for row in db.execute(sql, [MIGRATIONS.name])}
    ours = [one.name for one in MIGRATIONS._migrations]
    if unknown := found.difference(ours):
        raise StoreError(
            f"The export was written by a newer Keepwarm ({', '.join(sorted(map(ascii, unknown)))[:200]}). "
            "Import it with that version."
        )
    if found != set(ours[: len(found)]):
        raise StoreError(f"{_not_ours(origin)} (steps of its schema are missing). Nothing was imported.")
    return found


def _copy(db: sqlite3.Connection, table: str, origin: Path) -> None:
    _refuse_no_table(db, table, origin)
    columns = [str(row[1]) for row in db.execute(f"PRAGMA main.table_info({table})")]
    there = {str(row[1]) for row in db.execute(f"PRAGMA there.table_info({table})")}  # without generated columns
    if lacking := [name for name in columns if name not in there]:
        raise StoreError(f"{_not_ours(origin)} ({table} lacks {', '.join(lacking)}). Nothing was imported.")
    names = ", ".join(columns)
    # NOT INDEXED: an index could have the name of ours and other rows.
    db.execute(f"INSERT INTO main.{table}({names}) SELECT {names} FROM there.{table} NOT INDEXED")  # noqa: S608


def _refuse_no_table(db: sqlite3.Connection, table: str, origin: Path) -> None:
    """A view, or a virtual table, is none."""
    sql = "SELECT count(*) FROM there.sqlite_master WHERE type = 'table' AND name = ? AND rootpage > 0"
    if not db.execute(sql, [table]).fetchone()[0]:
        raise StoreError(f"{_not_ours(origin)} (it has no table {table}). Nothing was imported.")


def _not_ours(origin: Path) -> str:
    return f"The database {origin} is not as `keepwarm export` writes it"
