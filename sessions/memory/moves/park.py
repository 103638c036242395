"""Moves an idle conversation's KV off the device on request."""

from __future__ import annotations

from model_runtime.interface.protocol import KV, Engine
from sessions.errors import StoreError
from sessions.memory.device.leases import Leases
from sessions.memory.moves.save import SaveJob, Writer
from sessions.memory.saved.saved_kvs import SavedKVs
from sessions.text import mib
from sessions.types import Tier


class Parking:
    """Any thread but the engine's."""

    def __init__(self, engine: Engine, leases: Leases, saved_kvs: SavedKVs, writer: Writer) -> None:
        self._engine = engine
        self._leases = leases
        self._host = saved_kvs.host
        self._disk = saved_kvs.disk
        self._saved_kvs = saved_kvs
        self._writer = writer

    def park(self, owner_id: str, conversation_id: str, tier: Tier, timeout_s: float) -> int:
        """Moves an idle conversation's KV down, then frees it; returns the freed bytes. Inside the conversation's
        claim. Raises `StoreError`, and the KV stays, when it cannot be kept there."""
        idle = self._leases.held.idle(conversation_id)
        if tier is Tier.HOST:
            return self._park_in_host(owner_id, conversation_id, idle)
        if tier is Tier.DISK:
            return self._park_on_disk(owner_id, conversation_id, idle, timeout_s)
        raise StoreError(f"Nothing can be parked on the {tier.value} tier: choose host or disk.")

    def _park_in_host(self, owner_id: str, conversation_id: str, idle: tuple[KV, tuple[int, ...]] | None) -> int:
        if not self._host.budget_bytes:
            raise StoreError(
                "Nothing can be parked in host memory: the host tier is off. Start the server with --host-kv-budget."
            )
        if idle is None:
            return 0
        kv, ids = idle
        if not self._saved_kvs.take(owner_id, conversation_id, kv, ids):
            raise StoreError(
                f"This memory has {mib(self._engine.segment_bytes(len(ids)))}, and of the "
                f"{mib(self._host.budget_bytes)} host budget {mib(self._host.used_bytes)} are used. "
                "It stays on the device."
            )
        return self._leases.drop(conversation_id)

    def _park_on_disk(
        self, owner_id: str, conversation_id: str, idle: tuple[KV, tuple[int, ...]] | None, timeout_s: float
    ) -> int:
        if not self._disk.budget_bytes:
            raise StoreError("Nothing can be parked: the disk budget is 0. Start the server with --disk-kv-budget.")
        if idle is None and not self._host.of_conversation(conversation_id):
            return 0
        kv, ids = idle or (None, ())
        is_long_rope = kv is not None and kv.is_long_rope
        job = SaveJob(owner_id, conversation_id, kv, ids, prompt_tokens=len(ids), is_long_rope=is_long_rope)
        self._writer.put(job)
        if not job.wait(timeout_s):
            place = "on the device" if kv is not None else "in host memory"
            raise StoreError(f"This memory could not be saved, so it stays {place}. The events say why.")
        return self._leases.drop(conversation_id) + self._host.release(conversation_id)
