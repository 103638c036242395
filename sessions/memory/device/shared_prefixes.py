"""Shared prefixes: rows that another conversation of the same owner holds on the device are copied, not read again."""

from __future__ import annotations

import logging
import threading

from model_runtime.interface.errors import ModelRuntimeError
from model_runtime.interface.protocol import KV, Engine
from sessions.ledger.ledger import common_prefix
from sessions.memory.device.held_kvs import HeldKVs
from sessions.memory.memory_records import SharedPrefix

log = logging.getLogger(__name__)

LEAST_TOKENS = 64  # less is read in the time that a step takes


class SharedPrefixes:
    """Any thread but the engine's. What was copied into a KV ahead of a message is remembered for its receipt."""

    def __init__(self, engine: Engine, held: HeldKVs) -> None:
        self._engine = engine
        self._held = held
        self._lock = threading.Lock()
        self._copied: dict[str, tuple[KV, SharedPrefix]] = {}

    def held_tokens(self, owner_id: str, conversation_id: str, ids: tuple[int, ...], is_long_rope: bool) -> int:
        """How much of the beginning of `ids` another KV of this owner holds, with these rotary frequencies."""
        best = self._best(owner_id, conversation_id, ids, is_long_rope)
        return best[0] if best is not None else 0

    def copy(
        self,
        owner_id: str,
        conversation_id: str,
        kv: KV,
        ids: tuple[int, ...],
        known_tokens: int,
        is_long_rope: bool,
    ) -> int:
        """Brings the longest beginning of `ids` that another KV of this owner holds into a leased KV, if that has
        `LEAST_TOKENS` less of it; at least `known_tokens` are in it already. Returns how many of `ids` it has
        then, as far as is known. Waits for the engine's step. Never raises: what could not be copied is read."""
        best = self._best(owner_id, conversation_id, ids, is_long_rope)
        if best is None or best[0] - known_tokens < LEAST_TOKENS:
            return known_tokens
        end, other_id, other = best
        try:
            start, end = self._engine.copy_beginning(other, kv, ids[:end], LEAST_TOKENS)
        except ModelRuntimeError as error:
            log.warning("beginning_not_copied conversation=%s error=%s", conversation_id, error)
            return 0
        if end:
            log.info("beginning_copied conversation=%s from=%s tokens=%d", conversation_id, other_id, end - start)
            with self._lock:
                self._copied[conversation_id] = (kv, SharedPrefix(other_id, start, end))
        return max(known_tokens, end)

    def _best(
        self, owner_id: str, conversation_id: str, ids: tuple[int, ...], is_long_rope: bool
    ) -> tuple[int, str, KV] | None:
        """(tokens, conversation, its KV)."""
        return max(
            (
                (common_prefix(held_ids[: len(ids)], ids), other_id, other)
                for other_id, other, held_ids in self._held.others(owner_id, conversation_id)
                if held_ids[:LEAST_TOKENS] == ids[:LEAST_TOKENS] and other.is_long_rope is is_long_rope
            ),
            key=lambda found: found[0],
            default=None,
        )

    def take_copied(self, conversation_id: str, kv: KV) -> SharedPrefix | None:
        """What was copied into this KV since its last turn. Returned once, then forgotten."""
        with self._lock:
            copied = self._copied.pop(conversation_id, None)
        return copied[1] if copied is not None and copied[0] is kv else None
