"""Drives the whole session manager from a benchmark: real SQLite, files and engine; turns in, receipts out."""

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
    """A server without its pages."""

    manager: SessionManager
    store: Store
    engine: Engine
    loaded: LoadedModel
    data_dir: Path

    def conversation(self, new_tokens: int) -> str:
        """A new one that gives greedy answers of that length."""
        settings = ConversationSettings(SamplingParams(temperature=0, max_new_tokens=new_tokens))
        return self.manager.create_conversation(OWNER, settings).conversation_id

    def text(self, tokens: int, number: int = 0) -> str:
        """Prose of about so many tokens that begins differently for every number."""
        return f"Number {number}. " + str(self.loaded.tokenizer.decode(prose_ids(self.loaded, max(1, tokens - 4))))

    def turn(self, conversation_id: str, text: str) -> tuple[float, Receipt]:
        """Seconds from sending to the first token, and the receipt; returns when the answer is committed."""
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
        row = next(r for r in self.manager.memory(OWNER).rows if r.conversation_id == conversation_id)
        deadline = time.monotonic() + 60
        while row.disk_tokens < row.ledger_tokens - 1 and time.monotonic() < deadline:
            time.sleep(0.01)
            row = next(r for r in self.manager.memory(OWNER).rows if r.conversation_id == conversation_id)


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
    """One life of a server. What the device holds is given in bytes or in tokens."""
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
    """Asks the kernel to drop the saved files from its cache; False where it does not take that."""
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
