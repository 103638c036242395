"""`keepwarm doctor`: compares the files with the database, reads every saved segment and verifies every conversation.

Works on a data directory that no server is using (the store holds its lock). A damaged file, or rows that differ from a
re-read, are deleted, because they would be refused anyway; everything else is reported and left alone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from model_runtime.interface.errors import ModelRuntimeError, SegmentRefused
from model_runtime.interface.numerics import difference
from model_runtime.interface.protocol import Engine
from model_runtime.interface.segments import SegmentIdentity, identify
from sessions.config import SessionConfig
from sessions.errors import StoreError
from sessions.ledger.ledger import fold
from sessions.memory.saved.disk import Disk
from sessions.memory.saved.kv_files import KvFiles, path_in
from sessions.store.records import Conversation
from sessions.store.store import Store
from sessions.store.tables.segments import SavedSegment
from sessions.text import UNTITLED, mib, tokens
from sessions.verify.compare import check, disk_copy, saved_with_long_rope

log = logging.getLogger(__name__)

SHOWN_FILES = 5
Say = Callable[[str], None]


@dataclass(slots=True)
class Report:
    """Collects findings: `wrong` are the problems, as sentences; `say` was called with each when it was found."""

    say: Say
    wrong: list[str] = field(default_factory=list)

    def found(self, sentence: str) -> None:
        self.wrong.append(sentence)
        self.say(f"  ! {sentence}")


def inspect(store: Store, report: Report) -> None:
    """Checks the database itself, and the files against it. Needs no model. Raises `StoreError`."""
    conversations = store.every_conversation()
    rows = store.segments.every()
    for trouble in store.troubles():
        report.found(f"The database is damaged: {trouble}")
    report.say(f"Database: {_count(len(conversations), 'conversation')}, {_count(len(rows), 'saved segment')}.")
    kv = KvFiles(store.kv_dir)
    files = _files(store.kv_dir)
    total_bytes = sum(size for size, _ in files.values())
    report.say(f"Saved memory: {_count(len(files), 'file')}, {mib(total_bytes)}.")
    keys = {row.key for row in rows}
    for row in rows:
        path = path_in(store.kv_dir, row.key)
        size, mode = files.pop(path, (-1, 0))
        if size < 0:
            report.found(f"A row without its file: {path.name}, {mib(row.size_bytes)}.")
        elif size != row.size_bytes:
            report.found(f"A file whose length differs from its row: {path.name}, {size:,} bytes.")
        elif mode & 0o077:
            report.found(f"A file that other users may read: {path.name} has mode {mode & 0o777:o}.")
        if size >= 0 and not kv.is_ours(path):
            report.found(f"Something else in the place of a saved file; it is left alone: {path.name}.")
        if not row.conversation_ids:
            report.found(f"A segment that no conversation refers to: {path.name}, {mib(row.size_bytes)}.")
        if row.parent_key and row.parent_key not in keys:
            report.found(f"A segment whose beginning is gone: {path.name}, {mib(row.size_bytes)}.")
    ours = {path: files.pop(path)[0] for path in list(files) if kv.is_ours(path)}
    if ours:
        report.found(f"{_listed(ours, 'without a row')} The next start deletes them.")
    if files:
        foreign = {path: size for path, (size, _) in files.items()}
        report.found(f"{_listed(foreign, 'not written by Keepwarm')} They are left alone.")
    for folder in (store.kv_dir.parent, store.kv_dir):
        if folder.is_dir() and folder.stat().st_mode & 0o077:
            report.found(f"A directory that other users may enter: {folder}.")


def verify_everything(store: Store, engine: Engine, report: Report) -> None:
    """Reads every saved segment and checks its checksum; then reads every conversation that has saved memory again and
    compares. Raises `StoreError`."""
    config = SessionConfig(device_kv_budget_bytes=1, disk_kv_budget_bytes=1)
    disk = Disk(store, engine, config, frozenset)
    owners = {c.conversation_id: c.owner_id for c in store.every_conversation()}
    rows = store.segments.every()
    foreign = [row for row in rows if row.fingerprint != disk.numerics]
    if foreign:
        foreign_bytes = sum(row.size_bytes for row in foreign)
        whys = sorted({difference(row.fingerprint, disk.numerics) for row in foreign} - {""})
        report.say(
            f"  {_count(len(foreign), 'segment')}, {mib(foreign_bytes)}, of another model or precision"
            f"{''.join(f' ({why})' for why in whys)}: not verified. They stay, and are deleted first when room is "
            "needed."
        )
    report.say(f"Reading {_count(len(rows) - len(foreign), 'file')}.")
    for row in rows:
        if row not in foreign and row.conversation_ids:
            _read(store, disk, row, owners.get(row.conversation_ids[0], ""), report)
    kept = {c for row in store.segments.every() if row not in foreign for c in row.conversation_ids}
    for conversation in store.every_conversation():
        if conversation.conversation_id in kept:
            _verify(store, engine, disk, conversation, report)


def _read(store: Store, disk: Disk, row: SavedSegment, owner_id: str, report: Report) -> None:
    ids = store.segments.token_ids(row.key)
    fingerprint = disk.fingerprint_of(row, owner_id, ids)
    before = SegmentIdentity(row.parent_key, "", row.start_tokens, (), fingerprint) if row.parent_key else None
    identity = identify(before, ids, fingerprint)
    name = path_in(store.kv_dir, row.key).name
    if identity.key != row.key:
        report.found(f"A row whose ids do not match its key: {name}. It was deleted.")
        bad = SegmentIdentity(row.key, row.parent_key, row.start_tokens, (), fingerprint)
        disk.discard(bad, "its ids did not match its key")
        return
    try:
        disk.load(identity)
    except SegmentRefused as error:
        report.found(f"A file that was refused: {name}, {error}. It was deleted, with all segments that continue it.")
        disk.discard(identity, error)


def _verify(store: Store, engine: Engine, disk: Disk, conversation: Conversation, report: Report) -> None:
    conversation_id = conversation.conversation_id
    title = conversation.title or UNTITLED
    ledger = fold(store.messages.path(conversation.leaf_id))
    is_long = saved_with_long_rope(disk, conversation.owner_id, conversation_id, ledger[:-1])
    copy = disk_copy(disk, conversation.owner_id, conversation_id, ledger[:-1], is_long)
    if not copy.chain.identities:
        report.say(f"  {title}: nothing is saved of its current branch")
        return
    scratch = engine.new_kv()
    try:
        read = ledger[: copy.chain.useful_tokens + 1]
        found = check(engine, conversation_id, read, [copy], None, scratch, lambda: False, is_long)
    except ModelRuntimeError as error:
        report.found(f"{title} could not be verified. {error}")
        return
    finally:
        engine.release(scratch)
    assert found is not None, "it is never asked to stop"
    if found.agrees:
        report.say(f"  {title}: {found.sentence}")
    else:
        report.found(f"{title}: {found.sentence}")


def _files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Every file below `folder`, with its size in bytes and its mode."""
    try:
        return {path: _size_and_mode(path) for path in _walk(folder)}
    except OSError as error:
        raise StoreError(f"The directory {folder} cannot be read ({error.strerror}).") from error


def _walk(folder: Path) -> Iterator[Path]:
    """Every file below `folder`. Links are listed, not followed, also those to folders."""
    for at, folders, names in os.walk(folder):
        yield from (Path(at, name) for name in names)
        yield from (path for name in folders if (path := Path(at, name)).is_symlink())


def _size_and_mode(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_size, status.st_mode


def _listed(files: dict[Path, int], which: str) -> str:
    names = ", ".join(path.name for path in sorted(files)[:SHOWN_FILES])
    more = "" if len(files) <= SHOWN_FILES else f" and {len(files) - SHOWN_FILES} more"
    return f"{mib(sum(files.values()))} {which}: {_count(len(files), 'file')} ({names}{more})."


def _count(number: int, noun: str) -> str:
    return tokens(number).replace("token", noun)
