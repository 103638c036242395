"""The disk tier: files of saved segments, their rows, and the budget over both.

A row exists only while its file does: a file is renamed into place before its row is committed, and a row is deleted
before its file. What a crash leaves between the two is a file that nobody knows; the next start sweeps it away.

`_files` is held while files come and go, so the budget holds at every moment. `_uses` is held for moments alone: a
restore marks its conversation as in use and never waits for a file to be written.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

from model_runtime.errors import SnapshotNotSaved, SnapshotRefused
from model_runtime.numerics import difference, with_part
from model_runtime.segments import SegmentIdentity, key_of
from model_runtime.types import Engine, Segment
from sessions.chains import BEGINNING_TOKENS, Chain, longest_chain
from sessions.compaction import find_run
from sessions.config import SessionConfig, default_disk_kv_budget_bytes
from sessions.eviction import Tail, choose_tails
from sessions.segments_table import SavedSegment, SegmentsTable
from sessions.text import mib

log = logging.getLogger(__name__)

HEADER_BYTES = 64 * 1024  # more than a file's header takes for any model: 90 bytes a tensor
MOST_BEGINNINGS = 64  # so many of those used last are looked at for one that begins like a ledger
NOT_SAVED = "This conversation's memory could not be saved:"


class Disk:
    """`busy` says which conversations have a run. Any thread; methods raise `StoreError` when the database fails."""

    def __init__(
        self,
        table: SegmentsTable,
        folder: Path,
        engine: Engine,
        config: SessionConfig,
        busy: Callable[[], Container[str]],
    ) -> None:
        self._table = table
        self._folder = folder
        self._engine = engine
        self._floor_bytes = config.disk_free_floor_bytes
        self._busy = busy
        self.lost_s: Callable[[int, int], float] = lambda start, tokens: float(tokens)  # what losing rows costs
        self.on_written: Callable[[int, float], None] = lambda size_bytes, seconds: None
        self._files = threading.RLock()
        self._uses = threading.RLock()
        self._in_use: Counter[str] = Counter()
        self.budget_bytes = self._chosen_budget_bytes(config)

    @property
    def used_bytes(self) -> int:
        return self._table.used_bytes()

    def fingerprint(self, owner_id: str) -> str:
        """What a segment's numbers rest on, and whose it is: no key and no header of one owner's is another's."""
        owner = blake2b(owner_id.encode("utf-8", errors="replace"), digest_size=16).hexdigest()
        return with_part(self._engine.info.fingerprint, "owner", owner)

    def path_of(self, key: str) -> Path:
        return path_in(self._folder, key)

    @contextlib.contextmanager
    def using(self, conversation_id: str) -> Iterator[None]:
        """Inside, none of the conversation's segments goes to make room."""
        with self._uses:
            self._in_use[conversation_id] += 1
        try:
            yield
        finally:
            with self._uses:
                self._in_use[conversation_id] -= 1
                self._in_use += Counter()  # forgets the zeros

    def chain(
        self, owner_id: str, conversation_id: str, ids: tuple[int, ...], limit_tokens: int | None = None
    ) -> Chain:
        """The conversation's saved segments that hold most of `ids`."""
        saved = self._table.of_conversation(conversation_id)
        return longest_chain(ids, saved, self.fingerprint(owner_id), self._table.token_ids, limit_tokens)

    def twin(self, owner_id: str, conversation_id: str, ids: tuple[int, ...], known_tokens: int) -> str:
        """The other conversation of this owner whose files hold most of `ids` from the start, at least
        `BEGINNING_TOKENS` more than `known_tokens`; "" when there is none."""
        saved = self._table.beginning_with(owner_id, ids[:BEGINNING_TOKENS], MOST_BEGINNINGS)
        chain = longest_chain(ids, saved, self.fingerprint(owner_id), self._table.token_ids)
        if chain.useful_tokens - known_tokens < BEGINNING_TOKENS:
            return ""
        users = {s.key: s.conversation_ids for s in saved}[chain.identities[-1].key]
        return next((user for user in users if user != conversation_id), "")

    def of_conversation(self, conversation_id: str) -> list[SavedSegment]:
        """What it refers to, all branches."""
        return self._table.of_conversation(conversation_id)

    def token_ids(self, key: str) -> tuple[int, ...]:
        """() when it is not saved."""
        return self._table.token_ids(key)

    def knows(self, key: str) -> bool:
        return self._table.knows(key)

    def used_now(self, chain: Chain) -> None:
        """They go later than what was not used."""
        self._table.touch(identity.key for identity in chain.identities)

    def adopt(self, owner_id: str, conversation_id: str, identity: SegmentIdentity) -> bool:
        """True when another conversation of this owner has saved the very same; then it is shared."""
        return self._table.adopt(owner_id, conversation_id, identity.key)

    def room_for(self, owner_id: str, identities: Iterable[SegmentIdentity]) -> None:
        """Deletes what is worth least so that all of these fit, of other owners only what is beyond their shares; or
        nothing. Raises `SnapshotNotSaved`."""
        with self._files:
            self._make_room(sum(self._file_bytes(identity) for identity in identities), owner_id)

    def save(self, owner_id: str, conversation_id: str, segment: Segment) -> bool:
        """Writes the file, then its row. False when the conversation was deleted meanwhile. Raises
        `SnapshotNotSaved`."""
        identity = segment.identity
        path = self.path_of(identity.key)
        with self._files:
            self._make_room(self._file_bytes(identity), owner_id)
            self._make_folder(path.parent)
            began = time.monotonic()
            size_bytes = self._engine.save(segment, path)
            self.on_written(size_bytes, time.monotonic() - began)
            added = False
            try:
                added = self._table.add(owner_id, conversation_id, self._engine.info.fingerprint, identity, size_bytes)
            finally:
                if not added:
                    _unlink(path)
        return added

    def load(self, identity: SegmentIdentity) -> Segment:
        """Raises `SnapshotRefused`."""
        return self._engine.load(identity, self.path_of(identity.key))

    def discard(self, identity: SegmentIdentity) -> None:
        """A refused segment, and all that builds on it."""
        with self._files:
            self._unlink_all(self._table.remove_with_descendants(identity.key))

    def compact(self, limit_tokens: int) -> bool:
        """Joins one run of small files into a large one, where nobody uses them; False when there is nothing to do. The
        new file first, then one transaction over the rows, then the old files: a crash leaves files nobody knows."""
        with self._files:
            run = find_run(self._table.every(), limit_tokens)
            size_bytes = sum(segment.size_bytes for segment in run)
            if not run or self._is_used(run) or not self._has_room(size_bytes):
                return False
            fingerprint = self.fingerprint(self._table.owner_of(run[0].key))
            ids = [self._table.token_ids(segment.key) for segment in run]
            try:
                segments = [
                    self.load(SegmentIdentity(s.key, s.parent_key, s.start_tokens, own, fingerprint))
                    for s, own in zip(run, ids, strict=True)
                ]
            except SnapshotRefused as error:
                log.warning("kv_not_compacted why=%s", error)
                return False  # the next restore refuses it, and says so to its owner
            every = tuple(itertools.chain.from_iterable(ids))
            key = key_of(run[0].parent_key, every, fingerprint)
            whole = SegmentIdentity(key, run[0].parent_key, run[0].start_tokens, every, fingerprint)
            joined = self._engine.join(whole, segments)
            if joined is None:
                return False
            self._make_folder(self.path_of(key).parent)
            written_bytes = self._engine.save(joined, self.path_of(key))
            with self._uses:
                replaced = not self._is_used(run) and self._table.replace((s.key for s in run), whole, written_bytes)
            self._unlink_all([s.key for s in run] if replaced else [key])
            log.info("kv_compacted files=%d bytes=%d done=%s", len(run), written_bytes, replaced)
            return replaced

    def _is_used(self, run: Sequence[SavedSegment]) -> bool:
        busy = self._busy()
        return any(c in busy or c in self._in_use for segment in run for c in segment.conversation_ids)

    def _has_room(self, size_bytes: int) -> bool:
        fits = self.used_bytes + size_bytes + HEADER_BYTES <= self.budget_bytes
        return fits and self._free_bytes() - size_bytes >= self._floor_bytes

    def drop(self, conversation_id: str) -> int:
        """Deletes what only this conversation refers to; returns the bytes that went."""
        with self._files:
            before_bytes = self.used_bytes
            self._table.release(conversation_id)
            self._unlink_all(self._table.remove_unreferenced())
            return before_bytes - self.used_bytes

    def collect(self) -> None:
        """Deletes what no conversation refers to any more, files included."""
        with self._files:
            self._unlink_all(self._table.remove_unreferenced())

    def sweep(self) -> None:
        """At the start: rows of another model, rows without files, files without rows; then the budget."""
        with self._files:
            self._make_folder(self._folder)
            present = {path.stem: path for path in self._folder.rglob("*.kv")}
            rows = self._table.every()
            other_model = [s.key for s in rows if s.fingerprint != self._engine.info.fingerprint]
            self._table.remove(other_model)
            lost: list[str] = []
            for segment in rows:
                if segment.key not in present:
                    lost += self._table.remove_with_descendants(segment.key)
            nobodys = self._table.remove_unreferenced()
            known = {segment.key for segment in self._table.every()}
            orphans = [path for path in self._folder.rglob("*") if path.is_file() and path.stem not in known]
            for path in orphans:
                _unlink(path)
            for why in sorted({difference(s.fingerprint, self._engine.info.fingerprint) for s in rows} - {""}):
                log.warning("kv_refused why=%s", why)
            log.info(
                "kv_swept kept=%d other_model=%d rows_without_file=%d unreferenced=%d files_deleted=%d",
                *(len(known), len(other_model), len(lost), len(nobodys), len(orphans)),
            )
            with contextlib.suppress(SnapshotNotSaved):
                self._make_room(0)

    def _make_room(self, needed_bytes: int, owner_id: str = "") -> None:
        excess_bytes = self.used_bytes + needed_bytes - self.budget_bytes
        if excess_bytes > 0:
            with self._uses:
                chosen = choose_tails(self._tails(), excess_bytes, owner_id, self.budget_bytes)
                self._table.remove(chosen or ())
            if chosen is None:
                raise SnapshotNotSaved(
                    f"{NOT_SAVED} {mib(needed_bytes)} more do not fit the disk budget of {mib(self.budget_bytes)} "
                    "beside the conversations in use and what is guaranteed to other users."
                )
            self._unlink_all(chosen)
        free_bytes = self._free_bytes()
        if free_bytes - needed_bytes < self._floor_bytes and needed_bytes:
            raise SnapshotNotSaved(f"{NOT_SAVED} the disk has only {mib(free_bytes)} free.")

    def _tails(self) -> list[Tail]:
        busy = self._busy()

        def is_protected(segment: SavedSegment) -> bool:
            return any(c in busy or c in self._in_use for c in segment.conversation_ids)

        now = time.time()
        return [
            Tail(
                key=s.key,
                parent_key=s.parent_key,
                owner_id=s.owner_id,
                held_bytes=s.size_bytes,
                idle_s=now - s.last_used_at,
                start_tokens=s.start_tokens,
                is_protected=is_protected(s),
                lost_s=self.lost_s(s.start_tokens, s.tokens),
            )
            for s in self._table.every()
        ]

    def _file_bytes(self, identity: SegmentIdentity) -> int:
        return self._engine.segment_bytes(len(identity.token_ids)) + HEADER_BYTES

    def _unlink_all(self, keys: Iterable[str]) -> None:
        for key in keys:
            _unlink(self.path_of(key))

    def _make_folder(self, folder: Path) -> None:
        try:
            for made in (self._folder, folder.parent, folder) if folder != self._folder else (folder,):
                made.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise SnapshotNotSaved(f"{NOT_SAVED} {error.strerror} in {self._folder}.") from error

    def _free_bytes(self) -> int:
        existing = self._folder if self._folder.exists() else self._folder.parent
        return shutil.disk_usage(existing).free

    def _chosen_budget_bytes(self, config: SessionConfig) -> int:
        if config.disk_kv_budget_bytes is not None:
            return config.disk_kv_budget_bytes
        return default_disk_kv_budget_bytes(self._free_bytes() + self.used_bytes)


def path_in(folder: Path, key: str) -> Path:
    """Where a segment's file lies."""
    return folder / key[:2] / key[2:4] / f"{key}.kv"


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:  # its row is gone; the next start tries again
        log.error("kv_file_not_deleted path=%s error=%s", path, error)
