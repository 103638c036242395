"""Notices an engine that hangs or has died, and rebuilds it.

Its active runs fail with a sentence, and everything on the device is given up, because a thread that hangs may still
write there. Conversations come back from their ledgers and their saved segments with the next turn; queued runs stay
queued.

Only silence that the watchdog itself was awake for counts. A process that was stopped, a machine that slept and a
container that got no processor time do not mean that the engine hangs, although its steps take that much longer.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from model_runtime.interface.errors import ModelRuntimeError
from model_runtime.interface.protocol import Engine, Pulse
from sessions.awake import Starvation
from sessions.memory.device.held_kvs import HeldKVs
from sessions.worker import Worker

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.5
_LOOK_CLOSELY_S = 0.05  # once one step of the engine has lasted longer than two looks
_TRY_AGAIN_AFTER_S = 10.0
_PATIENCE = 10.0  # times the expected duration of a step
_LATE = 2.0  # a look that comes later than this many intervals was held up, and so was the engine


class Silence:
    """How long the engine's current step has lasted, without the time for which this process was stopped or starved of
    a processor. One thread calls `look`; any thread may call `of`."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        starvation: Starvation | None = None,
    ) -> None:
        self._clock = clock
        self._starvation = starvation or Starvation()
        self._seen = (
            clock(),
            0.0,
            _LATE * _LOOK_EVERY_S,
        )  # when; the silence then; the most that may pass until the next look

    def of(self, pulse: Pulse) -> float:
        """The silence now."""
        looked_at, silent_s, most_s = self._seen
        return min(pulse.busy_s, silent_s + min(self._clock() - looked_at, most_s))

    def look(self, pulse: Pulse) -> float:
        """Counts the silence up to now. Returns the seconds until the next look."""
        silent_s, is_close = self.of(pulse), pulse.busy_s > _LATE * _LOOK_EVERY_S
        if is_close:
            starved_s = self._starvation.look()
            silent_s = max(min(self._seen[1], pulse.busy_s), silent_s - starved_s)
        else:
            self._starvation.forget()
        wait_s = min(_LOOK_CLOSELY_S, _LOOK_EVERY_S) if is_close else _LOOK_EVERY_S
        self._seen = (self._clock(), silent_s, _LATE * wait_s)
        return wait_s


class Watchdog:
    """`on_rebuilt` is called with the owner and id of each conversation whose memory on the device was given up."""

    def __init__(
        self,
        engine: Engine,
        held: HeldKVs,
        hang_after_s: float,
        on_rebuilt: Callable[[str, str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._held = held
        self._hang_after_s = hang_after_s
        self._on_rebuilt = on_rebuilt
        self._given_up: list[tuple[str, str]] = []
        self._is_well = True
        self._silence = Silence(clock)
        self._closed = threading.Event()
        self._worker = Worker("watchdog", self._loop)

    @property
    def is_well(self) -> bool:
        """Whether the engine responds, as far as is known."""
        pulse = self._engine.pulse()
        return self._is_well and not self._is_stuck(pulse, self._silence.of(pulse))

    def start(self) -> None:
        self._worker.start()

    def close(self, timeout_s: float) -> None:
        """Must come before the engine is closed, which would look like a dead engine."""
        self._closed.set()
        self._worker.close(timeout_s)

    def _is_stuck(self, pulse: Pulse, silent_s: float) -> bool:
        return not pulse.is_alive or silent_s > self._hang_after_s + _PATIENCE * pulse.expected_s

    def _loop(self) -> None:
        wait_s = _LOOK_EVERY_S
        while not self._closed.wait(wait_s):
            pulse = self._engine.pulse()
            wait_s = self._silence.look(pulse)
            if self._is_stuck(pulse, self._silence.of(pulse)) and not self._rebuild(pulse):
                wait_s = _TRY_AGAIN_AFTER_S

    def _rebuild(self, pulse: Pulse) -> bool:
        log.error(
            "engine_given_up alive=%s busy_s=%.1f expected_s=%.1f", pulse.is_alive, pulse.busy_s, pulse.expected_s
        )
        started = time.monotonic()
        self._is_well = False
        self._given_up += self._held.give_up()
        try:
            self._engine.rebuild()
        except ModelRuntimeError as error:
            log.error("engine_not_rebuilt error=%s", error)
            return False
        except Exception:
            log.exception("engine_not_rebuilt")
            return False
        self._held.resume()
        log.warning("engine_rebuilt seconds=%.2f", time.monotonic() - started)
        given_up, self._given_up = self._given_up, []
        try:
            for owner_id, conversation_id in given_up:
                self._on_rebuilt(owner_id, conversation_id)
        finally:
            self._is_well = True  # only now, so that a healthy engine means that the log already tells what happened
        return True
