"""Makes and restores backups: a consistent copy of a data directory, also while a server is writing to it.

The database is copied by SQLite's backup function in one read transaction, which blocks no writer. Saved memory is
hard-linked if possible, otherwise copied: a segment's file never changes, and segments that are deleted meanwhile are
removed from the copied database too. Everything is assembled under another name, and renamed once it is complete and on
the disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from dataclasses import asdict
from pathlib import Path

from model_runtime.interface import segment_file
from sessions.errors import StoreError
from sessions.maintenance.contents import FORMAT, Contents, fill
from sessions.maintenance.copying import (
    Check,
    assembled,
    connect,
    copy_file,
    is_inside,
    sha256,
    translated,
    write_synced,
)
from sessions.store.data_directory import DATABASE_NAME

MANIFEST_NAME = "backup.json"


def back_up(data_dir: Path, target: Path) -> Contents:
    """Creates `target`, which must not exist yet, or be empty. Raises `StoreError`, and then leaves nothing behind."""
    database = data_dir / DATABASE_NAME
    if not database.is_file():
        raise StoreError(f"There is no Keepwarm database in {data_dir}. Name another directory with --data-dir.")
    if is_inside(target, data_dir) or is_inside(data_dir, target):
        raise StoreError(f"A backup of {data_dir} can be neither inside it nor around it. Choose another directory.")
    with translated(target), assembled(target) as made:
        with contextlib.closing(connect(database)) as source:
            _copy_database(source, made / DATABASE_NAME)
        contents = fill(data_dir, made, lambda path: "")
        write_synced(made / MANIFEST_NAME, json.dumps(asdict(contents), indent=1).encode())
    return contents


def restore(source: Path, data_dir: Path, check: Check = segment_file.damage) -> Contents:
    """Creates the data directory, which must not exist yet, or be empty. The backup stays unchanged. `check` says what
    is wrong with a segment's file, "" for nothing. Raises `StoreError`, and then leaves nothing behind."""
    manifest = _manifest(source)
    if is_inside(data_dir, source) or is_inside(source, data_dir):
        raise StoreError(f"Neither of the data directory {data_dir} and the backup {source} can be inside the other.")
    with translated(data_dir), assembled(data_dir) as made:
        database = made / DATABASE_NAME
        copy_file(source / DATABASE_NAME, database)
        if sha256(database) != manifest.database_sha256:
            raise StoreError(f"The backup {source} is damaged: its database has changed since the backup was made.")
        return fill(source, made, check)


def _manifest(source: Path) -> Contents:
    try:
        found = Contents(**json.loads((source / MANIFEST_NAME).read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise StoreError(f"{source} is not a backup made by `keepwarm backup`: it has no {MANIFEST_NAME}.") from error
    except (OSError, ValueError, TypeError) as error:
        raise StoreError(f"The backup {source} cannot be read ({error}).") from error
    if found.format != FORMAT:
        raise StoreError(f"The backup {source} was made by another version of Keepwarm. Restore it with that version.")
    if not (source / DATABASE_NAME).is_file():
        raise StoreError(f"The backup {source} is damaged: its database is missing.")
    return found


def _copy_database(source: sqlite3.Connection, target: Path) -> None:
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    with contextlib.closing(sqlite3.connect(target)) as copy:
        source.backup(copy)
