"""The thread that checks the data directory: whether messages can be stored, and whether the WAL needs a checkpoint.

It notices within seconds, without a turn, that the disk is full or read-only, or that a file was deleted while the
server runs; and also that the problem is gone. Answers that were kept in memory meanwhile are stored then.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from sessions.errors import SessionError, StoreError
from sessions.memory.saved.kv_files import path_in
from sessions.store.store import Store
from sessions.store.tables.losses import Cause, SavedLoss
from sessions.store.writable_folder import PROBE_BYTES, folder_trouble
from sessions.turns.unstored_answers import UnstoredAnswers
from sessions.worker import Worker

log = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0
LOOK_AGAIN_AFTER_S = 0.5  # while something is wrong
QUIET_S = 3.0  # without writes, after which the WAL is moved into the database file
TOLD_FOR_S = 600.0  # how long the page says that saved memory was deleted


@dataclass(frozen=True, slots=True)
class StorageState:
    """`can_store` is False while turns can neither begin nor be stored. `reasons` are sentences for people, worst
    first."""

    can_store: bool = True
    reasons: tuple[str, ...] = ()


class StorageCheck:
    """`saves_kv` says whether KVs are saved to the store's folder. Any thread may read `state`."""

    def __init__(
        self, store: Store, unstored: UnstoredAnswers, saves_kv: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._unstored = unstored
        self._saves_kv = saves_kv
        self._clock = clock
        self._found = StorageState()
        self._kv_seen: tuple[int, int] | None = None
        self._kv_deleted_at: float | None = None
        self._wal = (0, clock())  # its bytes, and since when
        self._ended = threading.Event()
        self._worker = Worker("storage", self._loop)

    @property
    def state(self) -> StorageState:
        """The result of the last check, and any failed write since."""
        found, trouble = self._found, self._store.trouble
        if trouble and found.can_store:
            return StorageState(False, (trouble, *found.reasons))
        return found

    def start(self) -> None:
        self._worker.start()

    def close(self, timeout_s: float) -> None:
        """Tries once more to store the answers that are still in memory."""
        self._ended.set()
        self._worker.close(timeout_s)
        try:
            self._unstored.store_all(at_once=True)
            self._store.losses.record_kept()
        except StoreError as error:
            log.error("answers_lost count=%d why=%s", self._unstored.count, error)

    def look(self) -> StorageState:
        """Checks now, and repairs what can be repaired."""
        trouble = self._trouble()
        reasons = [trouble] if trouble else []
        if trouble and self._unstored.count:
            answers = "answer is" if self._unstored.count == 1 else "answers are"
            reasons.append(f"{self._unstored.count} {answers} kept in memory and will be stored as soon as possible.")
        if self._saves_kv and (about_kv := self._kv_trouble()):
            reasons.append(about_kv)
        state = StorageState(not trouble, tuple(reasons))
        if state.reasons != self._found.reasons:
            log.error("storage_trouble why=%s", " ".join(reasons)) if reasons else log.warning("storage_is_well")
        self._found = state
        if not trouble:
            self._checkpoint()
        return state

    def _loop(self) -> None:
        wait_s = 0.0
        while not self._ended.wait(wait_s):
            try:
                wait_s = LOOK_EVERY_S if self.look().can_store else LOOK_AGAIN_AFTER_S
            except SessionError as error:
                log.error("storage_not_examined error=%s", error)
                wait_s = LOOK_AGAIN_AFTER_S
            except Exception:
                log.exception("storage_not_examined")
                wait_s = LOOK_EVERY_S

    def _trouble(self) -> str:
        """Why nothing can be stored; "" when it can be. After a failure only a successful write counts as proof."""
        if moved := self._store.moved():
            return moved
        trouble = folder_trouble(self._store.data_dir)
        try:
            self._unstored.store_all()
            self._store.losses.record_kept()
            if self._store.trouble:
                self._store.try_to_write()
        except StoreError as error:
            return trouble or str(error)
        return trouble

    def _kv_trouble(self) -> str:
        """What is wrong with the folder of saved memory; "" for nothing. Conversations work without it."""
        folder = self._store.kv_dir
        try:
            found = folder.stat()
        except FileNotFoundError:
            if self._kv_seen is not None:
                self._forget_deleted()
            return self._kv_note()
        except OSError as error:
            return f"Saved memory in {folder} cannot be used ({error.strerror}): nothing is being saved."
        if self._kv_seen not in (None, (found.st_dev, found.st_ino)):
            self._forget_deleted()
        self._kv_seen = (found.st_dev, found.st_ino)
        disk = os.statvfs(folder)
        is_own_disk = (
            found.st_dev != self._store.data_dir.stat().st_dev
        )  # otherwise the database reports the same problem
        if is_own_disk and disk.f_bavail * disk.f_frsize < PROBE_BYTES:
            return f"The disk that holds {folder} is full: conversations are not kept warm across a restart."
        if disk.f_flag & os.ST_RDONLY:
            return f"The disk that holds {folder} is read-only: conversations are not kept warm across a restart."
        if not os.access(folder, os.W_OK | os.X_OK):
            return (
                f"The server cannot write to the directory {folder}: conversations are not kept warm across a restart."
            )
        return self._kv_note()

    def _forget_deleted(self) -> None:
        """Removes the rows whose files are gone. A row is committed after its file exists, so none is removed too
        soon."""
        rows = self._store.segments.every()
        missing = [row.key for row in rows if not path_in(self._store.kv_dir, row.key).exists()]
        for key in missing:
            _, users = self._store.segments.remove_with_descendants(key)
            self._store.losses.record(users, SavedLoss(Cause.FILES_MISSING))
        log.error("kv_folder_deleted rows=%d", len(missing))
        self._kv_seen, self._kv_deleted_at = None, self._clock()

    def _kv_note(self) -> str:
        if self._kv_deleted_at is None or self._clock() - self._kv_deleted_at > TOLD_FOR_S:
            return ""
        return (
            f"The directory {self._store.kv_dir} was deleted while the server was running. No message is lost; "
            "conversations that were saved there are read again at their next turn."
        )

    def _checkpoint(self) -> None:
        size, since = self._wal
        now_bytes = self._store.wal_bytes()
        if now_bytes != size or not now_bytes:
            self._wal = (now_bytes, self._clock())
        elif self._clock() - since >= QUIET_S:
            self._store.checkpoint()
