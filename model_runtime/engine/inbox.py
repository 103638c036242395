"""The work and calls that wait for one engine thread, and what the thread is busy with. A thread that hangs is
abandoned together with its inbox and a new thread gets a new inbox, so that the old one never touches new work."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from typing import Any, TypeVar

from model_runtime.engine.generation import RunningGeneration
from model_runtime.engine.work import Work
from model_runtime.interface.errors import EngineClosed
from model_runtime.interface.events import FinishReason
from model_runtime.interface.protocol import Pulse

T = TypeVar("T")
CLOSED = "The model was unloaded; start the server again."
GIVEN_UP = "The model had stopped responding and was restarted. Try again."


class Inbox:
    """`ask`, `call`, `close`, `give_up` and `pulse` may be called from any thread, the rest from the engine thread."""

    def __init__(self) -> None:
        self.running: list[RunningGeneration] = []
        self.idle: list[Work] = []
        self.arrived: list[Work] = []
        self.is_over = False  # the thread was abandoned
        self.is_closing = False
        self._wake = threading.Condition()
        self._calls: list[Callable[[], None]] = []
        self._awaited: set[Future[Any]] = set()
        self._busy_since: float | None = None
        self._expected_s = 0.0
        self._is_alive = True

    def ask(self, work: Work) -> bool:
        """Queues work. False when no more work is accepted."""
        with self._wake:
            if self.is_closing or not self._is_alive:
                return False
            self.arrived.append(work)
            self._wake.notify()
            return True

    def call(self, call: Callable[[], T]) -> T:
        """Runs `call` between two steps and waits for it. Raises what it raises, or `EngineClosed`."""
        done: Future[T] = Future()

        def run() -> None:
            with contextlib.suppress(InvalidStateError):  # the thread was abandoned meanwhile
                try:
                    done.set_result(call())
                except Exception as error:
                    done.set_exception(error)

        with self._wake:
            if self.is_closing or not self._is_alive:
                raise EngineClosed(CLOSED if self.is_closing else GIVEN_UP)
            self._calls.append(run)
            self._awaited.add(done)
            self._wake.notify()
        try:
            return done.result()
        finally:
            with self._wake:
                self._awaited.discard(done)

    def take(self) -> tuple[list[Work], list[Callable[[], None]]] | None:
        """Waits for work or calls and takes them. None when the thread must end."""
        with self._wake:
            self._busy_since = None
            while not (self.is_closing or self.is_over or self.arrived or self._calls or self.running or self.idle):
                self._wake.wait()
            if self.is_closing or self.is_over:
                return None
            self.begins(0.0)
            arrived, self.arrived = self.arrived, []
            calls, self._calls = self._calls, []
            return arrived, calls

    def begins(self, expected_s: float) -> None:
        """Records that something starts that may hang, and how long it is expected to take."""
        self._busy_since, self._expected_s = time.monotonic(), expected_s

    def is_wanted(self) -> bool:
        """Whether a request or a call arrived while idle work runs its forward."""
        is_asked = any(not work.is_idle for work in self.arrived)
        return self.is_closing or self.is_over or bool(self._calls) or is_asked

    def pulse(self) -> Pulse:
        """The state of the thread."""
        since = self._busy_since
        return Pulse(self._is_alive, 0.0 if since is None else time.monotonic() - since, self._expected_s)

    def close(self) -> None:
        """Asks the thread to end."""
        with self._wake:
            self.is_closing = True
            self._wake.notify()
        for work in (*self.running, *self.idle):
            work.abort()

    def end(self, reason: FinishReason, sentence: str | None = None) -> None:
        """Finishes all work and calls. Called by the engine thread when it ends, or by `give_up`."""
        with self._wake:
            self._is_alive, self._busy_since = False, None
            left: Iterable[Work] = [*self.running, *self.idle, *self.arrived]
            calls, self._calls = self._calls, []
            awaited = list(self._awaited)
        for work in left:
            work.finish(reason, sentence)
        if sentence is None:  # a thread that ends normally still runs the waiting calls
            for call in calls:
                call()
        for future in awaited:
            with contextlib.suppress(InvalidStateError):
                future.set_exception(EngineClosed(sentence or CLOSED))

    def give_up(self, sentence: str) -> None:
        """Finishes everything from another thread, whatever the engine thread is doing; its later results are
        dropped."""
        self.is_over = True
        self.end(FinishReason.FAILED, sentence)
        with self._wake:
            self._wake.notify()
