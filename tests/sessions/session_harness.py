"""What many tests of `sessions` need: a server without HTTP, and ways to wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sessions.config import SessionConfig
from sessions.ledger.ledger import fold
from sessions.manager import SessionManager
from sessions.store.records import Node
from sessions.store.store import Store
from sessions.store.tables.losses import SavedLoss
from sessions.store.tables.served_time import SYSTEM_CLOCK, Clock
from sessions.turns.run import Run
from sessions.types import ConversationSettings, MessageView, Receipt, RunPhase
from tests import polling
from tests.sessions.byte_template import ByteTemplate
from tests.sessions.scripted_engine import ScriptedEngine, text_of

ADA = "ada"


class SessionHarness:
    """A store, a scripted engine and a started manager."""

    def __init__(
        self,
        data_dir: Path,
        engine: ScriptedEngine | None = None,
        template: ByteTemplate | None = None,
        budget_bytes: int = 64 * 1024 * 1024,
        clock: Clock = SYSTEM_CLOCK,
        **config: object,
    ) -> None:
        self.engine = engine or ScriptedEngine()
        self.template = template or ByteTemplate()
        self.store = Store(data_dir)
        settings = {
            "device_kv_budget_bytes": budget_bytes,
            "checkpoint_interval_s": 0.05,
            "disk_kv_budget_bytes": 0,
            "read_ahead": False,  # so that a turn's fed tokens are its delta
            "draft_quiet_s": 60.0,  # so that only the stable part of a draft is read
            "model_titles": False,
            **config,
        }
        self.manager = SessionManager(self.store, self.engine, self.template, SessionConfig(**settings), clock)  # type: ignore[arg-type]
        self.said: list[str] = []  # what was said to a person at start-up
        self.manager.start(self.said.append)
        self._closed = False

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.manager.close()
            self.engine.close()
            self.store.close()

    def conversation(self, owner: str = ADA, **settings: object) -> str:
        """A new, empty conversation."""
        wanted = None
        if settings:
            prompt = str(settings.pop("system_prompt", ""))
            base = self.engine.info.default_sampling
            sampling = replace(base, **settings)  # type: ignore[arg-type]
            wanted = ConversationSettings(sampling, prompt)
        return self.manager.create_conversation(owner, wanted).conversation_id

    def say(self, conversation_id: str, text: str, owner: str = ADA) -> MessageView:
        return finish(self.manager.send(owner, conversation_id, text))

    def path(self, conversation_id: str, owner: str = ADA) -> tuple[Node, ...]:
        return self.store.messages.path(self.store.conversation(owner, conversation_id).leaf_id)

    def ledger(self, conversation_id: str, owner: str = ADA) -> tuple[int, ...]:
        return fold(self.path(conversation_id, owner))

    def expected_text(self, conversation_id: str, owner: str = ADA) -> str:
        """The answer function's text for the ledger before the last answer."""
        path = self.path(conversation_id, owner)
        return text_of(self.engine.answer(prompt_of(path)))

    def saved(self, conversation_id: str, owner: str = ADA) -> None:
        """Waits until the whole KV of the current path is on disk."""
        ids = self.ledger(conversation_id, owner)[:-1]
        disk = self.manager.memory.saved_kvs.disk
        until(lambda: disk.chain(owner, conversation_id, ids).useful_tokens == len(ids))

    def loss(self, conversation_id: str) -> SavedLoss | None:
        """The stored cause for the model and settings of this server."""
        return self.store.losses.of(conversation_id, self.manager.memory.saved_kvs.disk.numerics)

    def forget_loss(self, conversation_id: str) -> None:
        self.store.losses.saved(conversation_id, self.manager.memory.saved_kvs.disk.numerics)

    def files(self) -> list[Path]:
        """The files of saved KVs."""
        return sorted(path for path in self.store.kv_dir.rglob("*") if path.is_file())

    def receipt(self, message: MessageView) -> Receipt:
        assert message.receipt is not None
        return message.receipt

    def texts(self, conversation_id: str, owner: str = ADA) -> list[str]:
        return [message.text for message in self.manager.view(owner, conversation_id).messages]


def prompt_of(path: tuple[Node, ...]) -> tuple[int, ...]:
    """The ledger before the answer at the end of `path`."""
    ledger = fold(path)
    return ledger[: len(ledger) - len(path[-1].answer_ids)]


def finish(run: Run, timeout_s: float = 20.0) -> MessageView:
    """Waits for the end of a run and returns the committed answer."""
    deadline = time.monotonic() + timeout_s
    snapshot = run.snapshot()
    while snapshot.phase is not RunPhase.DONE:
        assert time.monotonic() < deadline, f"the run did not end: {snapshot}"
        snapshot = run.wait(snapshot.version, 1.0)
    assert snapshot.message is not None
    return snapshot.message


def until(is_so: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Waits for another thread. Looks every 2 ms, because some states last only a few."""
    polling.until(is_so, timeout_s, every_s=0.002)
