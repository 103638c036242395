"""The thread that does background jobs, one at a time, while no run is active or queued.

A job never holds anyone up: when a run is queued, or something else needs the same KV, the job is preempted. The engine
ends it between two layers, what it has read stays useful, and the job resumes the next time the engine is idle.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, IntEnum, auto

from model_runtime.interface.protocol import Generation
from sessions.errors import SessionError
from sessions.memory.device.held_kvs import HeldKVs
from sessions.worker import Worker

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 0.25
FIRST_PAUSE_S = 0.03  # after a refusal (no room, a KV that is still being saved); doubles with each further one
MAX_REFUSALS = 8  # then the job is dropped


class JobKind(IntEnum):
    """What a job does. When several are due, the lowest number goes first."""

    DRAFT = 0
    WHOLE = 1  # the rest of a draft that was read, as if it were sent now
    TITLE = 2
    TURN_START = 3  # the tokens that every next message begins with


class Outcome(Enum):
    """How a job ended."""

    DONE = auto()  # or there was nothing to do
    PREEMPTED = auto()
    REFUSED = auto()  # no room now, or too early
    FAILED = auto()


@dataclass(frozen=True, slots=True)
class IdleJob:
    """One thing to do for a conversation. `text` is the draft, which arrived at `asked_at`. Times are monotonic."""

    kind: JobKind
    owner_id: str
    conversation_id: str
    text: str = ""
    refusals: int = 0
    not_before: float = 0.0
    asked_at: float = 0.0


class Preemption:
    """Lets any thread end the job that is being performed. `request` never blocks."""

    def __init__(self) -> None:
        self.is_requested = False
        self._generation: Generation | None = None

    def request(self) -> None:
        self.is_requested = True
        if self._generation is not None:
            self._generation.abort()

    def attach(self, generation: Generation) -> None:
        """Names the generation that a request aborts; it is aborted at once if the request came first."""
        self._generation = generation
        if self.is_requested:
            generation.abort()


class IdleWorker:
    """Queues background jobs and runs each with `perform`, on its own thread.

    At most one job of each kind waits for a conversation: the newest. While a conversation has a draft, no other kind
    of job runs for it, because that would crop what was read of the draft. A draft that stays unchanged for `quiet_s`
    after it was read is read whole; the next key press makes that useless, so every draft goes before it.
    """

    def __init__(self, held: HeldKVs, perform: Callable[[IdleJob, Preemption], Outcome], quiet_s: float) -> None:
        self._held = held
        self._perform = perform
        self._quiet_s = quiet_s
        self._changed = threading.Condition()
        self._jobs: dict[tuple[str, JobKind], IdleJob] = {}
        self._drafted: set[str] = set()  # conversations with a draft since their last turn
        self._current: tuple[IdleJob, Preemption] | None = None
        self._is_current_obsolete = False  # then it does not resume
        self._closed = False
        self._worker = Worker("idle", self._loop)

    def start(self) -> None:
        self._worker.start()

    def close(self, timeout_s: float) -> None:
        """Ends the current job and starts no other."""
        with self._changed:
            self._closed = True
            if self._current is not None:
                self._current[1].request()
            self._changed.notify_all()
        self._worker.close(timeout_s)

    def put(self, job: IdleJob) -> None:
        """Never blocks. A newer draft ends the reading of one that it does not continue."""
        job = replace(job, asked_at=time.monotonic())
        with self._changed:
            if job.kind is JobKind.DRAFT:
                self._note_draft(job)
            elif job.conversation_id in self._drafted:
                return
            self._jobs[job.conversation_id, job.kind] = job
            if self._current is not None and _ends(job, self._current[0]):
                self._current[1].request()
            self._changed.notify_all()

    def forget(self, conversation_id: str) -> None:
        """Drops the jobs of a conversation: a turn begins there, or it is deleted."""
        with self._changed:
            self._drafted.discard(conversation_id)
            for kind in JobKind:
                self._jobs.pop((conversation_id, kind), None)
            if self._current is not None and self._current[0].conversation_id == conversation_id:
                self._is_current_obsolete = True

    @property
    def is_idle(self) -> bool:
        """Whether no job runs or waits, other than drafts that have not been quiet for long enough."""
        with self._changed:
            recent = time.monotonic() - self._quiet_s
            is_due = any(job.kind is not JobKind.WHOLE or job.asked_at <= recent for job in self._jobs.values())
            return not is_due and self._current is None

    def _note_draft(self, job: IdleJob) -> None:
        self._jobs.pop((job.conversation_id, JobKind.WHOLE), None)
        if not job.text:
            self._drafted.discard(job.conversation_id)
            return
        self._drafted.add(job.conversation_id)
        for kind in (JobKind.TITLE, JobKind.TURN_START):
            self._jobs.pop((job.conversation_id, kind), None)

    def _loop(self) -> None:
        while self._wait_for_job():
            if not self._held.wait_quiet(LOOK_AGAIN_S) or (taken := self._take()) is None:
                continue
            job, preemption = taken
            outcome = Outcome.FAILED
            try:
                outcome = self._perform(job, preemption)
            except SessionError as error:  # the conversation was deleted meanwhile, or the database is closed
                log.info("idle_work_dropped conversation=%s error=%s", job.conversation_id, error)
            except Exception:
                log.exception("idle_work_failed conversation=%s", job.conversation_id)
            self._put_back(job, outcome)

    def _wait_for_job(self) -> bool:
        """Returns True when a job is due, False when the worker is closed."""
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                waits_s = [job.not_before - now for job in self._jobs.values()]
                if waits_s and min(waits_s) <= 0:
                    return True
                self._changed.wait(min(waits_s, default=None))
            return False

    def _take(self) -> tuple[IdleJob, Preemption] | None:
        with self._changed:
            now = time.monotonic()
            due = [job for job in self._jobs.values() if job.not_before <= now]
            if not due or self._closed:
                return None
            job = min(due, key=lambda job: job.kind)
            del self._jobs[job.conversation_id, job.kind]
            self._current, self._is_current_obsolete = (job, Preemption()), False
            return self._current

    def _put_back(self, job: IdleJob, outcome: Outcome) -> None:
        """Queues what is left of a job, or the job that follows it."""
        with self._changed:
            self._current = None
            if outcome is Outcome.FAILED or self._is_superseded(job) or self._is_current_obsolete or self._closed:
                return
            if outcome is Outcome.DONE:
                if job.kind is not JobKind.DRAFT or not job.text:
                    return
                job = replace(job, kind=JobKind.WHOLE, refusals=0, not_before=job.asked_at + self._quiet_s)
            elif outcome is Outcome.REFUSED:
                if job.refusals >= MAX_REFUSALS:
                    return
                later = time.monotonic() + FIRST_PAUSE_S * 2**job.refusals
                job = replace(job, refusals=job.refusals + 1, not_before=later)
            self._jobs[job.conversation_id, job.kind] = job

    def _is_superseded(self, job: IdleJob) -> bool:
        """Whether a newer job takes its place."""
        is_drafted = job.conversation_id in self._drafted
        match job.kind:
            case JobKind.DRAFT:
                return (job.conversation_id, JobKind.DRAFT) in self._jobs
            case JobKind.WHOLE:
                return (job.conversation_id, JobKind.DRAFT) in self._jobs or not is_drafted
            case _:
                return (job.conversation_id, job.kind) in self._jobs or is_drafted


def _ends(new: IdleJob, current: IdleJob) -> bool:
    """Whether a new job preempts the current one."""
    if new.kind is not JobKind.DRAFT:
        return False
    if current.kind is JobKind.WHOLE:
        return True
    is_older = (current.conversation_id, current.kind) == (new.conversation_id, new.kind)
    return is_older and not new.text.startswith(current.text.rstrip().rpartition(" ")[0])
