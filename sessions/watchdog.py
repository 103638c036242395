"""Notices an engine that hangs or has died, and has it built anew.

The runs it was at are failed with a sentence and everything on the device is given up: a thread that hangs may still
write there. Conversations come back from their ledgers and their saved segments with the next turn; whoever waited in
line goes on waiting.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from model_runtime.errors import ModelRuntimeError
from model_runtime.types import Engine, Pulse
from sessions.leases import Leases

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.5
_TRY_AGAIN_AFTER_S = 10.0
_PATIENCE = 10.0  # times what a step was expected to take


class Watchdog:
    """`on_rebuilt` gets the owner and id of every conversation whose memory on the device was given up."""

    def __init__(
        self, engine: Engine, leases: Leases, hang_after_s: float, on_rebuilt: Callable[[str, str], None]
    ) -> None:
        self._engine = engine
        self._leases = leases
        self._hang_after_s = hang_after_s
        self._on_rebuilt = on_rebuilt
        self._lost: list[tuple[str, str]] = []
        self._is_well = True
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="keepwarm-watchdog", daemon=True)

    @property
    def is_well(self) -> bool:
        """Whether the engine answers, as far as is known."""
        return self._is_well and not self._is_stuck(self._engine.pulse())

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Before the engine is closed: that would look like a death."""
        self._closed.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _is_stuck(self, pulse: Pulse) -> bool:
        return not pulse.is_alive or pulse.busy_s > self._hang_after_s + _PATIENCE * pulse.expected_s

    def _loop(self) -> None:
        wait_s = _LOOK_EVERY_S
        while not self._closed.wait(wait_s):
            wait_s = _LOOK_EVERY_S
            pulse = self._engine.pulse()
            if self._is_stuck(pulse) and not self._rebuild(pulse):
                wait_s = _TRY_AGAIN_AFTER_S

    def _rebuild(self, pulse: Pulse) -> bool:
        log.error(
            "engine_given_up alive=%s busy_s=%.1f expected_s=%.1f", pulse.is_alive, pulse.busy_s, pulse.expected_s
        )
        started = time.monotonic()
        self._is_well = False
        self._lost += self._leases.give_up()
        try:
            self._engine.rebuild()
        except ModelRuntimeError as error:
            log.error("engine_not_rebuilt error=%s", error)
            return False
        except Exception:
            log.exception("engine_not_rebuilt")
            return False
        self._leases.resume()
        log.warning("engine_rebuilt seconds=%.2f", time.monotonic() - started)
        lost, self._lost = self._lost, []
        try:
            for owner_id, conversation_id in lost:
                self._on_rebuilt(owner_id, conversation_id)
        finally:
            self._is_well = True  # only now: whoever finds it well finds what happened in the log too
        return True
