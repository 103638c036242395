"""Drives the whole session manager from a benchmark, with real SQLite, files and engine."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.driver import prose_ids, start
from model_runtime.interface.protocol import Engine
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.loading.loaded import LoadedModel
from model_runtime.text.chat_template import ChatTemplate
from sessions.config import SessionConfig
from sessions.manager import SessionManager
from sessions.store.store import Store
from sessions.types import ConversationSettings, Receipt, RunPhase

OWNER = "benchmark"


@dataclass(frozen=True, slots=True)
class Served:
    """A session manager and everything below it, without the web server."""

    manager: SessionManager
    store: Store
    engine: Engine
    loaded: LoadedModel
    data_dir: Path

    def conversation(self, new_tokens: int) -> str:
        """Creates a conversation with greedy answers of `new_tokens` tokens."""
        settings = ConversationSettings(SamplingParams(temperature=0, max_new_tokens=new_tokens))
        return self.manager.create_conversation(OWNER, settings).conversation_id

    def text(self, tokens: int, number: int = 0) -> str:
        """About `tokens` tokens of prose with a different beginning for every `number`."""
        return f"Number {number}. " + str(self.loaded.tokenizer.decode(prose_ids(self.loaded, max(1, tokens - 4))))

    def turn(self, conversation_id: str, text: str) -> tuple[float, Receipt]:
        """Runs a turn until its answer is committed. Returns the seconds from sending to the first token, and the
        receipt."""
        begin = time.perf_counter()
        run = self.manager.send(OWNER, conversation_id, text)
        snapshot, first_s = run.snapshot(), 0.0
        while snapshot.phase is not RunPhase.DONE:
            snapshot = run.wait(snapshot.version, 60.0)
            if not first_s and snapshot.sampled_tokens:
                first_s = time.perf_counter() - begin
        if snapshot.message is None or snapshot.message.receipt is None:
            raise SystemExit(f"The turn failed: {snapshot.message.note if snapshot.message else 'no answer'}")
        return first_s, snapshot.message.receipt

    def settle(self, conversation_id: str) -> None:
        """Waits until the KV is saved."""
        row = next(r for r in self.manager.memory_view(OWNER).rows if r.conversation_id == conversation_id)
        deadline = time.monotonic() + 60
        while row.disk_tokens < row.ledger_tokens - 1 and time.monotonic() < deadline:
            time.sleep(0.01)
            row = next(r for r in self.manager.memory_view(OWNER).rows if r.conversation_id == conversation_id)


@contextlib.contextmanager
def serve(
    loaded: LoadedModel,
    data_dir: Path,
    device_bytes: int = 0,
    host_bytes: int = 0,
    disk_bytes: int = 0,
    limit: int = 8192,
    device_tokens: int = 0,
) -> Iterator[Served]:
    """Opens and closes a session manager. The device budget is given in bytes or in tokens."""
    engine = start(loaded, limit)
    device_bytes += device_tokens * engine.info.kv_bytes_per_token
    store = Store(data_dir)
    template = ChatTemplate(loaded.tokenizer, {loaded.tokenizer.eos_token_id})
    config = SessionConfig(device_bytes, host_kv_budget_bytes=host_bytes, disk_kv_budget_bytes=disk_bytes)
    manager = SessionManager(store, engine, template, config)
    manager.start()
    try:
        yield Served(manager, store, engine, loaded, data_dir)
    finally:
        manager.close()
        engine.close()
        store.close()


def forget_page_cache(data_dir: Path) -> bool:
    """Asks the kernel to drop the saved files from its cache; False if the system does not support that."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in data_dir.rglob("*.kv"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    return True
