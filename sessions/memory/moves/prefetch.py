"""Brings a conversation's saved KV back before its turn, into memory that is free."""

from __future__ import annotations

import threading

from model_runtime.interface.protocol import Engine
from sessions.memory.device.held_kvs import HeldKVs
from sessions.memory.memory_records import NOT_RESTORED, RestoreRequest
from sessions.memory.moves.restore import Restorer, Urgency
from sessions.memory.saved.saved_kvs import SavedKVs


class Prefetcher:
    """Any thread but the engine's."""

    def __init__(self, engine: Engine, held: HeldKVs, saved_kvs: SavedKVs, restorer: Restorer) -> None:
        self._engine = engine
        self._held = held
        self._saved_kvs = saved_kvs
        self._restorer = restorer
        self._warming: set[str] = set()
        self._warming_lock = threading.Lock()

    def warm(self, owner_id: str, conversation_id: str, ledger: tuple[int, ...]) -> bool:
        """Begins to restore a conversation whose KV is empty, if there is free room. False when it does not."""
        if not self._saved_kvs.is_on or not ledger or not self._has_saved(owner_id, conversation_id):
            return False
        with self._warming_lock:
            if conversation_id in self._warming:
                return True
            promised_bytes = self._engine.kv_bytes(len(ledger))
            if not self._held.has_room(conversation_id, promised_bytes):
                return False
            self._warming.add(conversation_id)
        self._restorer.put(Urgency.AHEAD, lambda: self._warm(owner_id, conversation_id, ledger, promised_bytes))
        return True

    def _has_saved(self, owner_id: str, conversation_id: str) -> bool:
        saved_kvs = self._saved_kvs
        in_memory = saved_kvs.host.of_conversation(conversation_id) or saved_kvs.staged.of_conversation(conversation_id)
        return bool(in_memory) or conversation_id in saved_kvs.disk.by_conversation(owner_id)

    def _warm(self, owner_id: str, conversation_id: str, ledger: tuple[int, ...], promised_bytes: int) -> None:
        with self._warming_lock:
            self._warming.discard(conversation_id)
        lease = self._held.reserve(conversation_id, owner_id, promised_bytes)
        if lease is None:
            return
        restored = NOT_RESTORED
        try:
            restored = self._restorer.restore(
                RestoreRequest(
                    owner_id=owner_id,
                    conversation_id=conversation_id,
                    kv=lease.kv,
                    ledger=ledger,
                    useful_tokens=0,
                    promised_bytes=promised_bytes,
                    must_stop=lambda: self._held.must_yield(lease),
                )
            )
        finally:
            # What it holds of other branches' ends is cropped by the next turn; these ids are the useful ones.
            self._held.settle(lease, ledger[: restored.tokens])
