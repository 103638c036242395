"""Exports one owner's conversations: a directory with a database that holds nothing of anyone else."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from dataclasses import asdict, dataclass
from pathlib import Path

from sessions.errors import StoreError
from sessions.maintenance.contents import COOKIE_KEY_NAME, FORMAT, Contents, fill
from sessions.maintenance.copying import assembled, connect, is_inside, refuse_links, sha256, translated, write_synced
from sessions.maintenance.owner_rows import copy_owner
from sessions.store.data_directory import DATABASE_NAME
from sessions.store.database import Database

MANIFEST_NAME = "owner.json"


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose conversations there are. `key_name` is that of an API key, "" for a browser; `title` the title of the
    conversation used last, at `used_at` seconds since the epoch."""

    owner_id: str
    key_id: str
    key_name: str
    conversations: int
    used_at: float
    title: str


@dataclass(frozen=True, slots=True)
class Exported:
    """The manifest of an export. `is_warm`: saved memory is in it. `key_mark` tells whether another server knows
    browsers by the same key, "" for a server that has none."""

    owner_id: str
    is_warm: bool
    key_mark: str
    contents: Contents


def owners(data_dir: Path) -> list[Owner]:
    """All owners of conversations, the one that was here last first. Works beside a server. Raises `StoreError`."""
    _refuse_missing(data_dir)
    sql = """
        SELECT c.owner_id, ifnull(k.id, ''), ifnull(k.name, ''), count(*), max(c.updated_at), c.title
        FROM conversations c LEFT JOIN api_keys k ON k.owner_id = c.owner_id
        GROUP BY c.owner_id ORDER BY max(c.updated_at) DESC"""
    with contextlib.closing(Database(data_dir / DATABASE_NAME)) as database, database.read() as db:
        return [Owner(*row) for row in db.execute(sql).fetchall()]


def export_owner(data_dir: Path, named: str, target: Path, with_saved: bool) -> Exported:
    """Creates `target`, which must not exist yet, or be empty. `named` is an owner, or an API key's id. Works beside a
    server. Raises `StoreError`, and then leaves nothing behind."""
    found = [one for one in owners(data_dir) if named and named in (one.owner_id, one.key_id)]
    if not found:
        raise StoreError(f"No conversation of {data_dir} belongs to {named!r}. `keepwarm export` lists the owners.")
    owner_id = found[0].owner_id
    if is_inside(target, data_dir) or is_inside(data_dir, target):
        raise StoreError(f"An export of {data_dir} can be neither inside it nor around it. Choose another directory.")
    with translated(target), assembled(target) as made:
        Database(made / DATABASE_NAME).close()
        (made / DATABASE_NAME).chmod(0o600)
        with contextlib.closing(connect(made / DATABASE_NAME)) as db:
            _copy(db, data_dir / DATABASE_NAME, owner_id, with_saved)
        contents = fill(data_dir, made, lambda path: "", with_key=False)
        exported = Exported(owner_id, with_saved, key_mark(data_dir), contents)
        write_synced(made / MANIFEST_NAME, json.dumps(asdict(exported), indent=1).encode())
    return exported


def key_mark(data_dir: Path) -> str:
    """What tells two keys apart by which servers know browsers, and from which no key can be found."""
    key = data_dir / COOKIE_KEY_NAME
    return sha256(key) if key.is_file() else ""


def manifest(source: Path) -> Exported:
    """What an export says of itself. Raises `StoreError`."""
    refuse_links(source)
    try:
        found = json.loads((source / MANIFEST_NAME).read_text(encoding="utf-8"))
        exported = Exported(**{**found, "contents": Contents(**found["contents"])})
    except FileNotFoundError as error:
        raise StoreError(f"{source} was not made by `keepwarm export`: it has no {MANIFEST_NAME}.") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StoreError(f"The export {source} cannot be read ({error}).") from error
    if not isinstance(exported.owner_id, str) or not exported.owner_id or not exported.owner_id.isprintable():
        raise StoreError(f"The export {source} cannot be read (its owner has no name).")
    if exported.contents.format != FORMAT:
        raise StoreError(f"The export {source} was made by another version of Keepwarm. Import it with that version.")
    database = source / DATABASE_NAME
    if not database.is_file() or sha256(database) != exported.contents.database_sha256:
        raise StoreError(f"The export {source} is damaged: its database is missing, or has changed since it was made.")
    return exported


def _copy(db: sqlite3.Connection, source: Path, owner_id: str, with_saved: bool) -> None:
    db.execute("ATTACH ? AS there", [f"{source.resolve().as_uri()}?mode=rw"])
    with db:  # one transaction, and one moment of the other database
        copy_owner(db, owner_id, with_saved)


def _refuse_missing(data_dir: Path) -> None:
    if not (data_dir / DATABASE_NAME).is_file():
        raise StoreError(f"There is no Keepwarm database in {data_dir}. Name another directory with --data-dir.")
