"""The disk tier: the files of saved segments, their rows, and the budget for both.

A row exists only while its file does: a file is renamed into place before its row is committed, and a row is deleted
before its file. A crash between the two leaves a file without a row; the next start deletes it.

The lock `_lock` is held while files are written or deleted, so the budget holds at every moment. The lock in
`DiskBudget` is held only briefly: a restore marks its conversation as in use and never waits for a file to be written.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Container, Iterable, Sequence
from hashlib import blake2b
from pathlib import Path

from model_runtime.interface.errors import SegmentGone, SegmentNotSaved, SegmentRefused
from model_runtime.interface.numerics import difference, with_long_rope, with_part
from model_runtime.interface.protocol import Engine, Segment
from model_runtime.interface.segments import SegmentIdentity, key_of, with_format
from sessions.config import SessionConfig
from sessions.errors import StoreError
from sessions.memory.saved.chains import BEGINNING_TOKENS, Chain, longest_chain
from sessions.memory.saved.compaction import find_run
from sessions.memory.saved.disk_budget import DiskBudget
from sessions.memory.saved.kv_files import KvFiles
from sessions.memory.saved.speed import RestoreSpeed
from sessions.store.store import Store
from sessions.store.tables.losses import Cause, SavedLoss
from sessions.store.tables.segments import Saved, SavedSegment
from sessions.text import mib

log = logging.getLogger(__name__)

HEADER_BYTES = 64 * 1024  # more than the header of a file takes for any model: 90 bytes per tensor
MAX_BEGINNINGS = 64  # how many recently used chains are compared with the beginning of a ledger
Say = Callable[[str], None]


def owned(numerics: str, owner_id: str, is_long_rope: bool) -> str:
    """The fingerprint of an owner's rows that were computed with `numerics`."""
    owner = blake2b(owner_id.encode("utf-8", errors="replace"), digest_size=16).hexdigest()
    numerics = with_part(numerics, "owner", owner)
    return with_long_rope(numerics) if is_long_rope else numerics


class Disk:
    """`busy` returns the conversations that have a run. `on_written(bytes, seconds)` is called after each written file.
    Any thread; methods raise `StoreError` when the database fails.

    Segments saved by another model, setting or version of Keepwarm stay on disk but are not used: they count against
    the budget, and are the first to be deleted.
    """

    def __init__(
        self,
        store: Store,
        engine: Engine,
        config: SessionConfig,
        busy: Callable[[], Container[str]],
        on_written: Callable[[int, float], None] = lambda size_bytes, seconds: None,
    ) -> None:
        self._table = store.segments
        self._losses = store.losses
        self._files = KvFiles(store.kv_dir)
        self._engine = engine
        self.numerics = with_format(engine.info.fingerprint)
        self._budget = DiskBudget(store, self._files, self.numerics, config, busy, self._lost_s)
        self._on_written = on_written
        self.speed = RestoreSpeed()
        self._lock = threading.RLock()
        self.using = self._budget.using

    @property
    def budget_bytes(self) -> int:
        return self._budget.budget_bytes

    @property
    def used_bytes(self) -> int:
        """All saved segments, those of other models and settings included."""
        return self._table.used_bytes()

    @property
    def other_bytes(self) -> int:
        """The segments of other models and settings."""
        return self._table.other_bytes(self.numerics)

    def recover_s(self, start_tokens: int, tokens: int, key: str) -> float:
        """The expected seconds to get rows back that no other tier has: to restore them from disk if the segment is
        there, or to read them again."""
        read_s = self._engine.estimate_read_s(start_tokens, start_tokens + tokens)
        if self.budget_bytes and self.knows(key):
            return min(read_s, self.speed.estimate_s(self._engine.segment_bytes(tokens), 1))
        return read_s

    def fingerprint(self, owner_id: str, is_long_rope: bool) -> str:
        """What a segment was computed with, and its owner: keys and headers of two owners are never equal, nor those of
        rows with long RoPE's long frequencies and with its short ones."""
        return owned(self._engine.info.fingerprint, owner_id, is_long_rope)

    def fingerprint_of(self, row: SavedSegment, owner_id: str, ids: Sequence[int]) -> str:
        """The fingerprint of a saved segment with these ids; that of the short frequencies if neither gives its key."""
        long, short = self.fingerprint(owner_id, True), self.fingerprint(owner_id, False)
        return long if key_of(row.parent_key, ids, long) == row.key else short

    def path_of(self, key: str) -> Path:
        return self._files.path_of(key)

    def chain(
        self,
        owner_id: str,
        conversation_id: str,
        ids: tuple[int, ...],
        limit_tokens: int | None = None,
        is_long_rope: bool = False,
    ) -> Chain:
        """The conversation's segments on disk that hold most of `ids`."""
        saved, fingerprint = self.of_conversation(conversation_id), self.fingerprint(owner_id, is_long_rope)
        return longest_chain(ids, saved, fingerprint, self._table.token_ids, limit_tokens)

    def twin(
        self, owner_id: str, conversation_id: str, ids: tuple[int, ...], known_tokens: int, is_long_rope: bool
    ) -> str:
        """The other conversation of this owner whose files hold the longest beginning of `ids`, at least
        `BEGINNING_TOKENS` more than `known_tokens`; "" if there is none."""
        if not self.budget_bytes:
            return ""
        saved = self._table.beginning_with(owner_id, self.numerics, ids[:BEGINNING_TOKENS], MAX_BEGINNINGS)
        chain = longest_chain(ids, saved, self.fingerprint(owner_id, is_long_rope), self._table.token_ids)
        if chain.useful_tokens - known_tokens < BEGINNING_TOKENS:
            return ""
        users = {s.key: s.conversation_ids for s in saved}[chain.identities[-1].key]
        return next((user for user in users if user != conversation_id), "")

    def of_conversation(self, conversation_id: str) -> list[SavedSegment]:
        """The segments of all its branches that can be used now."""
        return self._own(conversation_id) if self.budget_bytes else []

    def by_conversation(self, owner_id: str) -> dict[str, Saved]:
        """What each of the owner's conversations has on disk that can be used now."""
        return self._table.by_conversation(owner_id, self.numerics) if self.budget_bytes else {}

    def _own(self, conversation_id: str) -> list[SavedSegment]:
        return [s for s in self._table.of_conversation(conversation_id) if s.fingerprint == self.numerics]

    def loss(self, conversation_id: str) -> SavedLoss | None:
        """Why the conversation's next turn will not find everything that it saved; None if nothing is known to be
        lost."""
        if not self.budget_bytes and self._own(conversation_id):
            return SavedLoss(Cause.DISK_OFF, "is not read")
        return self._losses.of(conversation_id, self.numerics)

    def all_saved(self, conversation_id: str, message_id: int | None) -> None:
        """Records that everything up to the turn of this answer (None: every turn) is on disk."""
        self._losses.saved(conversation_id, self.numerics, message_id)

    def not_saved(self, conversation_id: str, why: str) -> None:
        """Records that something could not be saved. Raises `StoreError` when that cannot be recorded yet."""
        why = why.removeprefix("This conversation's memory could not be saved: ").rstrip(".")
        is_full = "No space left" in why or why.startswith("the disk has only")
        loss = SavedLoss(Cause.DISK_FULL if is_full else Cause.NOT_SAVED, why)
        lost = (conversation_id, self.numerics)
        try:
            self._losses.record([lost], loss)
        except StoreError:  # the disk has no room for this either
            self._losses.keep(lost, loss)
            raise

    def token_ids(self, key: str) -> tuple[int, ...]:
        """A segment's ids; () if it is not on disk."""
        return self._table.token_ids(key)

    def knows(self, key: str) -> bool:
        return self._table.knows(key)

    def used_now(self, chain: Chain) -> None:
        """Marks the segments as just used, so that they are deleted later than others."""
        self._table.touch(identity.key for identity in chain.identities)

    def adopt(self, owner_id: str, conversation_id: str, identity: SegmentIdentity) -> bool:
        """Shares a segment that another conversation of this owner has saved. False if there is none."""
        return self._table.adopt(owner_id, conversation_id, identity.key)

    def room_for(self, owner_id: str, identities: Iterable[SegmentIdentity]) -> None:
        """Deletes the least valuable segments until all of these fit; of other owners only what exceeds their shares.
        If that is not enough, deletes nothing and raises `SegmentNotSaved`."""
        with self._lock:
            self._budget.make_room(sum(self._file_bytes(identity) for identity in identities), owner_id)

    def save(self, owner_id: str, conversation_id: str, segment: Segment) -> bool:
        """Writes the file, then its row. False if the conversation was deleted meanwhile. Raises `SegmentNotSaved`."""
        identity = segment.identity
        path = self.path_of(identity.key)
        with self._lock:
            self._budget.make_room(self._file_bytes(identity), owner_id)
            self._files.prepare(path)
            began = time.monotonic()
            size_bytes = self._engine.save(segment, path)
            self._on_written(size_bytes, time.monotonic() - began)
            added = False
            try:
                added = self._table.add(owner_id, conversation_id, self.numerics, identity, size_bytes)
            finally:
                if not added:
                    self._files.delete(path)
        return added

    def load(self, identity: SegmentIdentity) -> Segment:
        """Reads a segment from its file and checks it. Raises `SegmentRefused`."""
        path = self.path_of(identity.key)
        if not path.exists():
            raise SegmentGone("the saved memory cannot be read: its file is gone")
        return self._engine.load(identity, path)

    def discard(self, identity: SegmentIdentity, why: SegmentRefused | str) -> None:
        """Deletes a refused segment and all segments that continue it."""
        is_gone = isinstance(why, SegmentGone)
        self._discard(identity.key, SavedLoss(Cause.FILES_MISSING) if is_gone else SavedLoss(Cause.REFUSED, str(why)))

    def _discard(self, key: str, loss: SavedLoss) -> list[str]:
        with self._lock:
            gone, users = self._table.remove_with_descendants(key)
            self._losses.record(users, loss)
            self._delete_files(gone)
            return gone

    def compact(self, limit_tokens: int) -> bool:
        """Joins one run of small, unused files into a large one. False if there is nothing to do. First the new file is
        written, then one transaction replaces the rows, then the old files are deleted: a crash in between leaves only
        files without rows."""
        with self._lock:
            run = find_run((s for s in self._table.every() if s.fingerprint == self.numerics), limit_tokens)
            size_bytes = sum(segment.size_bytes for segment in run)
            if not run or self._budget.is_used(run) or not self._budget.has_room(size_bytes + HEADER_BYTES):
                return False
            ids = [self._table.token_ids(segment.key) for segment in run]
            fingerprint = self.fingerprint_of(run[0], self._table.owner_of(run[0].key), ids[0])
            try:
                segments = [
                    self.load(SegmentIdentity(s.key, s.parent_key, s.start_tokens, own, fingerprint))
                    for s, own in zip(run, ids, strict=True)
                ]
            except SegmentRefused as error:
                log.warning("kv_not_compacted why=%s", error)
                return False  # the next restore refuses it, and tells its owner
            every = tuple(itertools.chain.from_iterable(ids))
            key = key_of(run[0].parent_key, every, fingerprint)
            whole = SegmentIdentity(key, run[0].parent_key, run[0].start_tokens, every, fingerprint)
            joined = self._engine.join(whole, segments)
            if joined is None:
                return False
            self._files.prepare(self.path_of(key))
            written_bytes = self._engine.save(joined, self.path_of(key))
            with self._budget.in_use_lock:
                is_used = self._budget.is_used(run)
                replaced = not is_used and self._table.replace((s.key for s in run), whole, written_bytes)
            self._delete_files([s.key for s in run] if replaced else [key])
            log.info("kv_compacted files=%d bytes=%d done=%s", len(run), written_bytes, replaced)
            return replaced

    def drop(self, conversation_id: str) -> int:
        """Deletes what only this conversation refers to, other models' segments included. Returns the freed bytes."""
        with self._lock:
            before_bytes = self.used_bytes
            numerics = {
                self.numerics,
                *(segment.fingerprint for segment in self._table.of_conversation(conversation_id)),
            }
            self._table.release(conversation_id)
            self._losses.record(((conversation_id, one) for one in numerics), SavedLoss(Cause.BY_HAND))
            self._delete_files(self._table.remove_unreferenced())
            return before_bytes - self.used_bytes

    def collect(self) -> None:
        """Deletes the segments that no conversation refers to any more, with their files."""
        with self._lock:
            self._delete_files(self._table.remove_unreferenced())

    def sweep(self, say: Say) -> None:
        """At start-up: deletes rows without files and our files without rows, then enforces the budget. `say` tells a
        person what stays of other models, and what is deleted before it is."""
        with self._lock:
            self._table.serves(self.numerics, self._engine.info.name)
            self._budget.begin()
            if self._files.is_elsewhere():
                say(f"The saved memory is not there: the link {self._files.folder} leads nowhere. It is left alone.")
                return
            unreferenced = self._table.remove_unreferenced()
            present = set(self._files.every())
            lost: list[str] = []
            for segment in self._table.every():
                if self.path_of(segment.key) not in present:
                    lost += self._discard(segment.key, SavedLoss(Cause.FILES_MISSING))
            rows = self._table.every()
            orphans = present - {self.path_of(segment.key) for segment in rows}
            deleted = sum(self._files.delete(path) for path in orphans)
            others = [s for s in rows if s.fingerprint != self.numerics]
            for why in sorted({difference(s.fingerprint, self.numerics) for s in others} - {""}):
                log.warning("kv_of_others why=%s", why)
            log.info(
                "kv_swept kept=%d of_others=%d rows_without_file=%d unreferenced=%d files_deleted=%d files_left=%d",
                *(len(rows), len(others), len(lost), len(unreferenced), deleted, len(orphans) - deleted),
            )
            self._say_what_stays(say)
            if shortage := self._budget.shortage():
                log.warning("kv_disk_too_full")
                say(shortage)
            with contextlib.suppress(SegmentNotSaved):
                self._budget.make_room(0)

    def _say_what_stays(self, say: Say) -> None:
        used_bytes, other_bytes, excess_bytes = self.used_bytes, self.other_bytes, self._budget.excess_bytes()
        if not self.budget_bytes:
            if used_bytes:
                say(
                    f"{mib(used_bytes)} of saved memory stay on disk, and are neither read nor deleted while the disk "
                    "budget is 0 (`keepwarm cache clear --all` deletes them)."
                )
            return
        if excess_bytes:
            sentence = (
                f"The saved memory takes {mib(used_bytes)}, and the disk budget is {mib(self.budget_bytes)}: "
                f"{mib(excess_bytes)} are deleted now{', other models first' if other_bytes else ''}."
            )
            log.warning("kv_over_budget used=%d budget=%d", used_bytes, self.budget_bytes)
            say(sentence)
        if staying_bytes := max(0, other_bytes - excess_bytes):
            say(
                f"{mib(staying_bytes)} of the saved memory belong to other models or settings. They stay in case you "
                "change back, and are deleted first when room is needed (`keepwarm cache list`)."
            )

    def _lost_s(self, start_tokens: int, tokens: int) -> float:
        """The seconds that restoring these rows saves over reading them again."""
        read_s = self._engine.estimate_read_s(start_tokens, start_tokens + tokens)
        return max(0.0, read_s - self.speed.estimate_s(self._engine.segment_bytes(tokens), 1))

    def _file_bytes(self, identity: SegmentIdentity) -> int:
        return self._engine.segment_bytes(len(identity.token_ids)) + HEADER_BYTES

    def _delete_files(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._files.delete(self.path_of(key))
