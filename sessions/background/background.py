"""What goes on beside the turns: idle work, the watchdog, verifying, the look after the data directory."""

from __future__ import annotations

from model_runtime.interface.chat import TurnTemplate
from model_runtime.interface.protocol import Engine
from sessions.background.drafts import Drafts
from sessions.background.idle_worker import IdleWorker
from sessions.background.read_ahead import ReadAhead
from sessions.background.storage_check import StorageCheck
from sessions.background.watchdog import Watchdog
from sessions.config import SessionConfig
from sessions.memory.memory import Memory
from sessions.store.store import Store
from sessions.turns.turn import Turns
from sessions.verify.verifier import Verifier


class Background:
    """Builds the workers and their threads, and starts and ends them."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        template: TurnTemplate,
        config: SessionConfig,
        memory: Memory,
        turns: Turns,
    ) -> None:
        read_ahead = ReadAhead(store, engine, template, memory, turns.runs, turns.limits)
        self.idle_worker = IdleWorker(memory.held, read_ahead.perform, config.draft_quiet_s)
        self.drafts = Drafts(store, template, turns.limits, self.idle_worker, config)
        self.watchdog = Watchdog(engine, memory.held, config.hang_after_s, memory.log.engine_rebuilt)
        self.verifier = Verifier(store, engine, memory, turns.runs)
        self.storage_check = StorageCheck(store, turns.recorder.kept, memory.disk_budget_bytes > 0)
        turns.runs.on_end(self.drafts.after_answer)

    def start(self) -> None:
        self.idle_worker.start()
        self.watchdog.start()
        self.verifier.start()
        self.storage_check.start()

    def stop_work(self) -> None:
        """Before the runs are ended: no engine is rebuilt and no idle work begins any more."""
        self.watchdog.close(timeout_s=1.0)
        self.idle_worker.close(timeout_s=1.0)

    def close(self) -> None:
        """After the recorder, before the memory: answers that could not be stored are tried once more."""
        self.storage_check.close(timeout_s=1.0)
