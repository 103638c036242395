"""The thread that writes KVs through to disk after each turn, in the order of the turns.

It stages a run of rows (the engine copies them between two steps), saves it, and goes on to the next. Staging a file at
a time would wait for a step each, half a second and more while a prompt is read; so what fits `STAGED_BYTES` is staged
in one go. Whatever fails, the chat goes on: the conversation is "not saved", and its owner is told.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from dataclasses import dataclass, field

from model_runtime.interface.errors import EngineClosed, SegmentNotSaved
from model_runtime.interface.protocol import KV, Engine, Segment
from sessions.awake import patiently
from sessions.errors import SessionError
from sessions.memory.device.held_kvs import HeldKVs
from sessions.memory.log import MemoryLog
from sessions.memory.saved.chains import Chain, cut
from sessions.memory.saved.disk import Disk
from sessions.memory.saved.saved_kvs import SavedKVs
from sessions.worker import Worker

log = logging.getLogger(__name__)

IDLE_S = 10.0  # after this long without a save small files are compacted


@dataclass(eq=False, slots=True)
class SaveJob:
    """A conversation's KV to be saved. `ids` is what the KV holds; no KV: what host memory alone holds of it. Its
    beginning was copied from `lender_id`, another conversation, whose files are shared then."""

    owner_id: str
    conversation_id: str
    kv: KV | None
    ids: tuple[int, ...]
    prompt_tokens: int
    message_id: int | None = None  # the answer it was saved after, None: no turn can have begun since
    lender_id: str = ""
    is_long_rope: bool = False  # the KV's rows have the long frequencies of long RoPE
    is_staged: bool = False  # all of it is in memory, on its way to the disk: the KV is not needed any more
    is_saved: bool = False
    _ended: threading.Event = field(default_factory=threading.Event)

    def wait(self, timeout_s: float) -> bool:
        """Whether all of it is saved, once the writer has done what it can; False when the time is over."""
        return patiently(self._ended.wait, timeout_s) and self.is_saved

    def end(self) -> None:
        self._ended.set()


class Writer:
    """`put` may be called from any thread and never blocks."""

    def __init__(self, engine: Engine, saved_kvs: SavedKVs, held: HeldKVs, memory_log: MemoryLog) -> None:
        self._engine = engine
        self._saved_kvs = saved_kvs
        self._disk = saved_kvs.disk
        self._held = held
        self._memory_log = memory_log
        self._queue: queue.SimpleQueue[SaveJob | None] = queue.SimpleQueue()
        self._gives_up = False
        self._worker = Worker("writer", self._loop)

    def start(self) -> None:
        self._worker.start()

    def put(self, job: SaveJob) -> None:
        self._queue.put(job)

    def close(self, timeout_s: float) -> None:
        """Saves what is in the queue, within the time limit, then ends. What is not saved is read again when it is
        needed."""
        self._queue.put(None)
        self._worker.close(timeout_s)
        self._gives_up = True

    def _loop(self) -> None:
        while (job := self._next()) is not None:
            trouble = ""
            try:
                job.is_saved = not self._gives_up and self._save(job)
                if job.is_saved:
                    self._disk.all_saved(job.conversation_id, job.message_id)
            except EngineClosed:
                log.info("kv_not_saved conversation=%s why=engine_closed", job.conversation_id)
            except (SegmentNotSaved, SessionError) as error:
                trouble = str(error)
                with contextlib.suppress(SessionError):  # the database is closed: the server is ending
                    self._disk.not_saved(job.conversation_id, trouble)
            except Exception:
                log.exception("kv_not_saved conversation=%s", job.conversation_id)
            try:
                self._tell_holder(job)
            finally:
                job.end()
            if trouble:
                self._tell(job, trouble)

    def _next(self) -> SaveJob | None:
        """Waits for a job. While none comes, small files become large ones, one run at a time."""
        patience_s: float | None = IDLE_S if self._disk.budget_bytes else None
        while True:
            try:
                return self._queue.get(timeout=patience_s)
            except queue.Empty:
                patience_s = 0.0 if self._compact() else None

    def _compact(self) -> bool:
        try:
            return self._disk.compact(self._saved_kvs.limit_tokens)
        except Exception as error:  # what cannot be compacted stays as it is
            log.warning("kv_not_compacted error=%s", error)
            return False

    def _tell(self, job: SaveJob, trouble: str) -> None:
        log.warning("kv_not_saved conversation=%s error=%s", job.conversation_id, trouble)
        with contextlib.suppress(SessionError):  # the same
            self._memory_log.not_saved(job.owner_id, job.conversation_id, trouble)

    def _save(self, job: SaveJob) -> bool:
        owner_id, conversation_id = job.owner_id, job.conversation_id
        with self._disk.using(conversation_id):
            if job.kv is None:
                return self._saved_kvs.write_through(owner_id, conversation_id)
            chain = self._chain(self._disk, job)
            if job.lender_id and not chain.identities and self._share_files(job):
                chain = self._chain(self._disk, job)
            parent = chain.whole[-1] if chain.whole else None
            fingerprint = self._disk.fingerprint(owner_id, job.is_long_rope)
            pieces = cut(job.ids, parent, job.prompt_tokens, self._saved_kvs.limit_tokens, fingerprint)
            while pieces and self._disk.adopt(owner_id, conversation_id, pieces[0]):
                del pieces[0]
            self._disk.used_now(chain)
            if pieces:
                self._disk.room_for(owner_id, pieces)
            for run in self._saved_kvs.staged_together(pieces):
                try:
                    segments = self._engine.stage_run(job.kv, run, before=job.ids[: run[0].start_tokens])
                except ValueError:  # dropped or cropped since then; a later turn saves what it then holds
                    log.info("kv_gone_before_saved conversation=%s", conversation_id)
                    return self._saved_kvs.write_through(owner_id, conversation_id) and self._has_all(job)
                if not self._write(job, segments, is_last=run[-1] is pieces[-1]):
                    return False
        return True

    def _share_files(self, job: SaveJob) -> bool:
        """Makes a new conversation refer to the files that hold its beginning. Whether there are any."""
        lent = self._disk.chain(job.owner_id, job.lender_id, job.ids, is_long_rope=job.is_long_rope).whole
        shared = [self._disk.adopt(job.owner_id, job.conversation_id, one) for one in lent]
        return any(shared)

    def _write(self, job: SaveJob, segments: list[Segment], is_last: bool) -> bool:
        """Until they are on disk, a restore takes them from memory, so once they are there the KV may go."""
        self._saved_kvs.staged.put(job.owner_id, job.conversation_id, segments)
        if is_last:
            job.is_staged = True
            self._are_safe(job, job.ids)
        try:
            for segment in segments:
                if self._gives_up or not self._disk.save(job.owner_id, job.conversation_id, segment):
                    return False
                self._saved_kvs.staged.remove([segment])
        finally:
            self._saved_kvs.staged.remove(segments)
        return True

    def _chain(self, place: Disk | SavedKVs, job: SaveJob) -> Chain:
        return place.chain(job.owner_id, job.conversation_id, job.ids, is_long_rope=job.is_long_rope)

    def _has_all(self, job: SaveJob) -> bool:
        return self._chain(self._disk, job).useful_tokens == len(job.ids)

    def _tell_holder(self, job: SaveJob) -> None:
        """It is on disk, or never will be. A KV that was evicted in between was taken to be saved then."""
        self._are_safe(job, job.ids if job.is_saved else job.ids[: self._on_disk_tokens(job)])
        if not job.is_saved and job.is_staged and self._held.went_for_room(job.conversation_id):
            lost_tokens = len(job.ids) - self._kept_tokens(job)
            if lost_tokens:
                self._memory_log.evicted_unsaved(job.owner_id, job.conversation_id, lost_tokens)

    def _are_safe(self, job: SaveJob, ids: tuple[int, ...]) -> None:
        """The device may forget these rows."""
        if job.kv is not None:
            self._held.saved(job.conversation_id, job.kv, ids, job.is_long_rope)
            self._held.staged(job.conversation_id, job.kv)

    def _on_disk_tokens(self, job: SaveJob) -> int:
        """What earlier turns, or the first of this one's files, left there. Nothing when the database is closed."""
        with contextlib.suppress(SessionError):
            return self._chain(self._disk, job).useful_tokens
        return 0

    def _kept_tokens(self, job: SaveJob) -> int:
        """The same with what host memory has."""
        with contextlib.suppress(SessionError):
            return self._chain(self._saved_kvs, job).useful_tokens
        return len(job.ids)  # the server is ending: nothing is logged
