"""The disk budget: makes room within it, keeps to each owner's share, and logs what is deleted before it is.

Segments of other models and settings are deleted first, then the least valuable ones (`eviction`). With a budget of 0
nothing is written, and nothing is deleted either.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from pathlib import Path

from model_runtime.interface.errors import SegmentNotSaved
from sessions.config import SessionConfig, default_disk_kv_budget_bytes
from sessions.memory.eviction import KEPT_FOR_S, SegmentCandidate, choose_tails
from sessions.memory.saved.kv_files import KvFiles
from sessions.store.store import Store
from sessions.store.tables.losses import Cause, SavedLoss
from sessions.store.tables.segments import SavedSegment
from sessions.text import duration, mib

log = logging.getLogger(__name__)

NOT_SAVED = "This conversation's memory could not be saved:"


class DiskBudget:
    """`busy` returns the conversations that have a run; `numerics` is what the server computes with;
    `lost_s(start, tokens)` is the expected cost in seconds of losing rows. Any thread; `make_room` is called with the
    lock on the files held."""

    def __init__(
        self,
        store: Store,
        files: KvFiles,
        numerics: str,
        config: SessionConfig,
        busy: Callable[[], Container[str]],
        lost_s: Callable[[int, int], float],
    ) -> None:
        self._table = store.segments
        self._losses = store.losses
        self._files = files
        self._numerics = numerics
        self._floor_bytes = config.disk_free_floor_bytes
        self._busy = busy
        self._lost_s = lost_s
        self.in_use_lock = threading.RLock()
        self._in_use: Counter[str] = Counter()
        self._started_at, self._gap_s = time.time(), 0.0
        self.budget_bytes = self._chosen_budget_bytes(config)

    def begin(self) -> None:
        """At start-up: measures the time since the last use. Either no server ran and nothing could be used, or the
        clock was changed; in both cases that time does not count as idle time."""
        self._started_at = time.time()
        last_used_at = self._table.not_in_the_future(self._started_at)
        self._gap_s = self._started_at - last_used_at if last_used_at else 0.0

    @contextlib.contextmanager
    def using(self, conversation_id: str) -> Iterator[None]:
        """Inside, none of the conversation's segments is deleted to make room."""
        with self.in_use_lock:
            self._in_use[conversation_id] += 1
        try:
            yield
        finally:
            with self.in_use_lock:
                self._in_use[conversation_id] -= 1
                self._in_use += Counter()  # forgets the zeros

    def is_used(self, segments: Iterable[SavedSegment]) -> bool:
        busy = self._busy()
        return any(c in busy or c in self._in_use for segment in segments for c in segment.conversation_ids)

    def has_room(self, size_bytes: int) -> bool:
        """Whether `size_bytes` fit without deleting anything."""
        fits = self._table.used_bytes() + size_bytes <= self.budget_bytes
        return fits and self._free_bytes() - size_bytes >= self._floor_bytes

    def shortage(self) -> str:
        """A sentence if the disk is too full for anything to be saved, whatever the budget is; "" if it is not."""
        free_bytes = self._free_bytes()
        if not self.budget_bytes or free_bytes > self._floor_bytes:
            return ""
        return (
            f"The disk has only {mib(free_bytes)} free, and saved memory must leave {mib(self._floor_bytes)} free: "
            f"nothing more is saved to {self._files.folder} until there is room."
        )

    def excess_bytes(self) -> int:
        """How much has to be deleted to keep to the budget."""
        return max(0, self._table.used_bytes() - self.budget_bytes) if self.budget_bytes else 0

    def make_room(self, needed_bytes: int, owner_id: str = "") -> None:
        """Deletes the least valuable segments until `needed_bytes` fit; of other owners only what exceeds their
        shares. If that is not enough, deletes nothing and raises `SegmentNotSaved`."""
        excess_bytes = self._table.used_bytes() + needed_bytes - self.budget_bytes
        if excess_bytes > 0 and self.budget_bytes and not self._delete(excess_bytes, owner_id):
            raise SegmentNotSaved(
                f"{NOT_SAVED} {mib(needed_bytes)} more do not fit the disk budget of {mib(self.budget_bytes)} "
                "beside the conversations in use and the guaranteed shares of other users."
            )
        short_bytes = self._floor_bytes - (self._free_bytes() - needed_bytes) if needed_bytes else 0
        if short_bytes > 0 and not self._delete(short_bytes, "", others_only=True):
            raise SegmentNotSaved(f"{NOT_SAVED} the disk has only {mib(self._free_bytes())} free.")

    def _delete(self, excess_bytes: int, owner_id: str, others_only: bool = False) -> bool:
        with self.in_use_lock:
            rows = {row.key: row for row in self._table.every()}
            tails = [tail for tail in self._tails(rows.values()) if tail.is_other or not others_only]
            chosen = choose_tails(tails, excess_bytes, owner_id, self.budget_bytes)
            if chosen is None:
                return False
            self._log_deletion([rows[key] for key in chosen], excess_bytes)
            self._record_loss([rows[key] for key in chosen])
            self._table.remove(chosen)
        for key in chosen:
            self._files.delete(self._files.path_of(key))
        return True

    def _log_deletion(self, doomed: Sequence[SavedSegment], excess_bytes: int) -> None:
        """Logs a deletion before it happens."""
        others = [row for row in doomed if row.fingerprint != self._numerics]
        log.log(
            logging.WARNING if others else logging.INFO,
            "kv_room_needed bytes=%d budget=%d files_to_go=%d bytes_to_go=%d of_other_models=%d",
            *(excess_bytes, self.budget_bytes, len(doomed), sum(r.size_bytes for r in doomed), len(others)),
        )

    def _record_loss(self, doomed: Iterable[SavedSegment]) -> None:
        """Records the cause for the next receipts of the conversations."""
        budget = mib(self.budget_bytes)
        for_room, for_clock = set[tuple[str, str]](), set[tuple[str, str]]()
        for row in doomed:
            is_older = row.last_used_at < self._started_at
            (for_clock if is_older and self._gap_s >= KEPT_FOR_S else for_room).update(row.users)
        self._losses.record(for_room, SavedLoss(Cause.DISK_BUDGET, budget))
        if for_clock:
            detail = f"{budget} while the server's clock was {duration(self._gap_s)} ahead of the last use"
            self._losses.record(for_clock, SavedLoss(Cause.CLOCK, detail))

    def _tails(self, rows: Iterable[SavedSegment]) -> list[SegmentCandidate]:
        busy, now = self._busy(), time.time()
        return [
            SegmentCandidate(
                key=s.key,
                parent_key=s.parent_key,
                owner_id=s.owner_id,
                held_bytes=s.size_bytes,
                idle_s=now - s.last_used_at - (self._gap_s if s.last_used_at < self._started_at else 0.0),
                start_tokens=s.start_tokens,
                is_protected=not is_other and any(c in busy or c in self._in_use for c in s.conversation_ids),
                lost_s=self._lost_s(s.start_tokens, s.tokens),
                is_other=is_other,
            )
            for s in rows
            for is_other in [s.fingerprint != self._numerics]
        ]

    def _free_bytes(self) -> int:
        return shutil.disk_usage(_existing(self._files.folder)).free

    def _chosen_budget_bytes(self, config: SessionConfig) -> int:
        if config.disk_kv_budget_bytes is not None:
            return config.disk_kv_budget_bytes
        return default_disk_kv_budget_bytes(self._free_bytes() + self._table.used_bytes())


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else folder.parent
