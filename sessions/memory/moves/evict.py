"""Where evicted KVs go, and what that costs their next turn."""

from __future__ import annotations

import logging

from model_runtime.interface.protocol import Engine
from sessions.memory.device.slots import DeviceSlot
from sessions.memory.saved.saved_kvs import SavedKVs
from sessions.types import Tier

log = logging.getLogger(__name__)


class LowerTiers:
    """Satisfies `sessions.memory.device.slots.EvictionTarget`: host memory, where there is a host tier, else what the
    writer has put on disk after each turn."""

    def __init__(self, engine: Engine, saved_kvs: SavedKVs) -> None:
        self._engine = engine
        self._saved_kvs = saved_kvs

    def leaving(self, slot: DeviceSlot) -> Tier:
        """Copies an idle KV that is about to be freed into host memory, if it fits; else what is on disk is left."""
        ids = slot.held_ids
        is_known = bool(ids) and len(ids) == slot.kv.length_tokens
        if self._saved_kvs.host.budget_bytes and is_known:
            if self._saved_kvs.take(slot.owner_id, slot.conversation_id, slot.kv, ids):
                return Tier.HOST
            log.info("kv_does_not_fit_host conversation=%s", slot.conversation_id)
        return Tier.DISK if slot.saved_tokens else Tier.NONE

    def lost_s(self, slot: DeviceSlot) -> float:
        """How much longer the next turn would take without this KV: restoring it, or reading it again."""
        tokens = slot.kv.length_tokens
        read_s = self._engine.estimate_read_s(0, tokens)
        if self._saved_kvs.host.budget_bytes:
            return min(read_s, self.restored_ttft_s(tokens, tokens, Tier.HOST))
        if slot.saved_tokens:
            return min(read_s, self.restored_ttft_s(min(tokens, slot.saved_tokens), tokens, Tier.DISK))
        return read_s

    def restored_ttft_s(self, saved_tokens: int, expected_tokens: int, tier: Tier) -> float:
        """What a turn is expected to take when `saved_tokens` come from that tier and the rest is read."""
        speed = self._saved_kvs.host_speed if tier is Tier.HOST else self._saved_kvs.disk_speed
        restore_s = speed.estimate_s(self._engine.segment_bytes(saved_tokens), 1)
        return restore_s + self._engine.estimate_read_s(saved_tokens, expected_tokens)
