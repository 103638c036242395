"""The thread that does what can wait, one thing at a time, while no run is at work or in line.

Whoever comes is never held up: a new ticket, or a hand on the same KV, asks the work at hand to make way, the engine
ends it between two layers, and what it had read stays of use. It is taken up again in the next gap.
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
from sessions.memory.device.leases import Leases
from sessions.worker import Worker

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 0.25
FIRST_PAUSE_S = 0.03  # after a refusal (no room, a KV that is still being saved), doubled with each further one
MOST_REFUSALS = 8  # then the errand is dropped


class Kind(IntEnum):
    """What comes first when several things can be done."""

    DRAFT = 0
    WHOLE = 1  # what is left of a draft that was read, as if it were sent now
    TITLE = 2
    GLUE = 3


class Outcome(Enum):
    """How an errand ended."""

    DONE = auto()  # or there is nothing to do
    MADE_WAY = auto()
    REFUSED = auto()  # no room now, or too early
    FAILED = auto()


@dataclass(frozen=True, slots=True)
class IdleJob:
    """One thing to do for a conversation. `text` is the draft, which came at `asked_at`. Times are monotonic."""

    kind: Kind
    owner_id: str
    conversation_id: str
    text: str = ""
    refusals: int = 0
    not_before: float = 0.0
    asked_at: float = 0.0


class Preemption:
    """Between the work at hand and whoever comes. `make` may be called from any thread, and never blocks."""

    def __init__(self) -> None:
        self.is_wanted = False
        self._generation: Generation | None = None

    def make(self) -> None:
        self.is_wanted = True
        if self._generation is not None:
            self._generation.abort()

    def take(self, generation: Generation) -> None:
        """This is the work at hand."""
        self._generation = generation
        if self.is_wanted:
            generation.abort()


class IdleWorker:
    """`perform` does an errand on this thread. At most one of a kind waits for each conversation: the newest. Where
    there is a draft, nothing else is done: it would crop what was read of it. A draft that has been quiet for `quiet_s`
    after it was read is read whole; the next key makes that in vain, so every draft comes before it."""

    def __init__(self, leases: Leases, perform: Callable[[IdleJob, Preemption], Outcome], quiet_s: float) -> None:
        self._leases = leases
        self._perform = perform
        self._quiet_s = quiet_s
        self._changed = threading.Condition()
        self._errands: dict[tuple[str, Kind], IdleJob] = {}
        self._drafted: set[str] = set()  # conversations with a draft since their last turn
        self._at_hand: tuple[IdleJob, Preemption] | None = None
        self._is_in_vain = False  # the work at hand: it is not taken up again
        self._closed = False
        self._worker = Worker("idle", self._loop)

    def start(self) -> None:
        self._worker.start()

    def close(self, timeout_s: float) -> None:
        """Ends the work at hand and takes no more."""
        with self._changed:
            self._closed = True
            if self._at_hand is not None:
                self._at_hand[1].make()
            self._changed.notify_all()
        self._worker.close(timeout_s)

    def put(self, errand: IdleJob) -> None:
        """Never blocks. A newer draft ends the reading of one that it does not go on from."""
        errand = replace(errand, asked_at=time.monotonic())
        with self._changed:
            if errand.kind is Kind.DRAFT:
                self._note_draft(errand)
            elif errand.conversation_id in self._drafted:
                return
            self._errands[errand.conversation_id, errand.kind] = errand
            if self._at_hand is not None and _ends(errand, self._at_hand[0]):
                self._at_hand[1].make()
            self._changed.notify_all()

    def forget(self, conversation_id: str) -> None:
        """A turn begins, or the conversation goes: nothing that was to be done before is of use."""
        with self._changed:
            self._drafted.discard(conversation_id)
            for kind in Kind:
                self._errands.pop((conversation_id, kind), None)
            if self._at_hand is not None and self._at_hand[0].conversation_id == conversation_id:
                self._is_in_vain = True

    def is_at_rest(self) -> bool:
        """Whether nothing is to be done, but for drafts that have not been quiet for long."""
        with self._changed:
            recent = time.monotonic() - self._quiet_s
            is_due = any(e.kind is not Kind.WHOLE or e.asked_at <= recent for e in self._errands.values())
            return not is_due and self._at_hand is None

    def _note_draft(self, errand: IdleJob) -> None:
        self._errands.pop((errand.conversation_id, Kind.WHOLE), None)
        if not errand.text:
            self._drafted.discard(errand.conversation_id)
            return
        self._drafted.add(errand.conversation_id)
        for kind in (Kind.TITLE, Kind.GLUE):
            self._errands.pop((errand.conversation_id, kind), None)

    def _loop(self) -> None:
        while self._wait_for_errands():
            if not self._leases.wait_quiet(LOOK_AGAIN_S) or (taken := self._take()) is None:
                continue
            errand, way = taken
            outcome = Outcome.FAILED
            try:
                outcome = self._perform(errand, way)
            except SessionError as error:  # deleted meanwhile, or the database is closed
                log.info("idle_work_dropped conversation=%s error=%s", errand.conversation_id, error)
            except Exception:
                log.exception("idle_work_failed conversation=%s", errand.conversation_id)
            self._put_back(errand, outcome)

    def _wait_for_errands(self) -> bool:
        """Returns when something can be done; False when it is all over."""
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                waits_s = [errand.not_before - now for errand in self._errands.values()]
                if waits_s and min(waits_s) <= 0:
                    return True
                self._changed.wait(min(waits_s, default=None))
            return False

    def _take(self) -> tuple[IdleJob, Preemption] | None:
        with self._changed:
            now = time.monotonic()
            due = [errand for errand in self._errands.values() if errand.not_before <= now]
            if not due or self._closed:
                return None
            errand = min(due, key=lambda errand: errand.kind)
            del self._errands[errand.conversation_id, errand.kind]
            self._at_hand, self._is_in_vain = (errand, Preemption()), False
            return self._at_hand

    def _put_back(self, errand: IdleJob, outcome: Outcome) -> None:
        """What is left to be done of it, and what comes after it."""
        with self._changed:
            self._at_hand = None
            if outcome is Outcome.FAILED or self._is_superseded(errand) or self._is_in_vain or self._closed:
                return
            if outcome is Outcome.DONE:
                if errand.kind is not Kind.DRAFT or not errand.text:
                    return
                errand = replace(errand, kind=Kind.WHOLE, refusals=0, not_before=errand.asked_at + self._quiet_s)
            elif outcome is Outcome.REFUSED:
                if errand.refusals >= MOST_REFUSALS:
                    return
                later = time.monotonic() + FIRST_PAUSE_S * 2**errand.refusals
                errand = replace(errand, refusals=errand.refusals + 1, not_before=later)
            self._errands[errand.conversation_id, errand.kind] = errand

    def _is_superseded(self, errand: IdleJob) -> bool:
        """Whether something newer takes its place."""
        is_drafted = errand.conversation_id in self._drafted
        match errand.kind:
            case Kind.DRAFT:
                return (errand.conversation_id, Kind.DRAFT) in self._errands
            case Kind.WHOLE:
                return (errand.conversation_id, Kind.DRAFT) in self._errands or not is_drafted
            case _:
                return (errand.conversation_id, errand.kind) in self._errands or is_drafted


def _ends(errand: IdleJob, current: IdleJob) -> bool:
    """Whether the work at hand has to make way for what was just asked for."""
    if errand.kind is not Kind.DRAFT:
        return False
    if current.kind is Kind.WHOLE:
        return True
    is_older = (current.conversation_id, current.kind) == (errand.conversation_id, errand.kind)
    return is_older and not errand.text.startswith(current.text.rstrip().rpartition(" ")[0])
