"""What a person can do to a conversation's memory: drop, park, pin, unpin, warm."""

from __future__ import annotations

from model_runtime.interface.protocol import ModelInfo
from sessions.errors import ConversationBusy, NotKeptHere
from sessions.ledger.ledger import fold
from sessions.memory.memory import Memory
from sessions.store.records import Conversation
from sessions.store.store import Store
from sessions.turns.run import RunTable
from sessions.types import Tier

PARK_TIMEOUT_S = 30.0


class MemoryActions:
    """Every method takes the owner first and raises `ConversationNotFound` for another owner's id. Any thread."""

    def __init__(self, store: Store, runs: RunTable, memory: Memory, info: ModelInfo) -> None:
        self._store = store
        self._info = info
        self._runs = runs
        self._memory = memory

    def drop(self, owner_id: str, conversation_id: str) -> None:
        """Frees the KV and deletes what is saved of it. Raises `ConversationBusy` during an answer, or when pinned."""
        self._of(owner_id, conversation_id)
        with self._runs.claim(conversation_id):
            self._refuse_pinned(conversation_id)
            freed_bytes = self._memory.leases.drop(conversation_id) + self._memory.drop_saved(conversation_id)
        if freed_bytes:
            self._memory.log.dropped(owner_id, conversation_id, freed_bytes)

    def park(self, owner_id: str, conversation_id: str, tier: Tier) -> None:
        """Moves the KV off the device. Raises `ConversationBusy` during an answer or when pinned, `StoreError` when it
        cannot be kept on that tier; it then stays where it is."""
        self._of(owner_id, conversation_id)
        with self._runs.claim(conversation_id):
            self._refuse_pinned(conversation_id)
            freed_bytes = self._memory.park(owner_id, conversation_id, tier, PARK_TIMEOUT_S)
        if freed_bytes:
            self._memory.log.parked(owner_id, conversation_id, freed_bytes, tier)

    def pin(self, owner_id: str, conversation_id: str) -> None:
        """Keeps the KV on the device until `unpin`, across restarts. Raises `CacheFull` with the numbers, or
        `ConversationBusy` during an answer. What is not on the device is brought back if there is free room."""
        self._of(owner_id, conversation_id)
        with self._runs.claim(conversation_id):
            conversation = self._store.conversation(owner_id, conversation_id)
            holding = self._memory.held.holdings().get(conversation_id)
            self._memory.pins.pin(conversation_id, conversation.ledger_tokens, holding.used_bytes if holding else 0)
            try:
                self._store.set_pinned(conversation_id, True)
            except BaseException:
                self._memory.pins.unpin(conversation_id)
                raise
        self._memory.log.pinned(owner_id, conversation_id, True)
        self.warm(owner_id, conversation_id)

    def unpin(self, owner_id: str, conversation_id: str) -> None:
        """It may be evicted again. Nothing happens when it was not pinned."""
        conversation = self._of(owner_id, conversation_id)
        if conversation.is_pinned:
            self._store.set_pinned(conversation_id, False)
            self._memory.pins.unpin(conversation_id)
            self._memory.held.look_again()
            self._memory.log.pinned(owner_id, conversation_id, False)

    def load_pins(self) -> None:
        """At the start. Pinned conversations are brought back to the device as far as there is room. With a remote
        engine they wait for a model that runs here."""
        if not self._info.keeps_kv:
            return
        pinned = self._store.pinned_conversations()
        left_out = self._memory.pins.load(pinned)
        for conversation in left_out:
            self._store.set_pinned(conversation.conversation_id, False)
            self._memory.log.unpinned_for_room(
                conversation.owner_id, conversation.conversation_id, self._memory.pins.limit_bytes
            )
        for conversation in pinned:
            if conversation not in left_out:
                self.warm(conversation.owner_id, conversation.conversation_id)

    def warm(self, owner_id: str, conversation_id: str) -> bool:
        """Begins to restore a saved KV, if there is one and free room for it. The events say when it is done."""
        conversation = self._store.conversation(owner_id, conversation_id)
        if self._runs.active(conversation_id) is not None:
            return False
        return self._memory.prefetcher.warm(
            owner_id, conversation_id, fold(self._store.messages.path(conversation.leaf_id))
        )

    def refuse_elsewhere(self) -> None:
        """Raises `NotKeptHere` when the KVs are in a remote engine."""
        if not self._info.keeps_kv:
            raise NotKeptHere(
                f"The memory of conversations is in the engine at {self._info.device}, which decides by itself what it "
                "keeps: nothing can be pinned, moved, dropped or verified from here."
            )

    def _of(self, owner_id: str, conversation_id: str) -> Conversation:
        conversation = self._store.conversation(owner_id, conversation_id)
        self.refuse_elsewhere()
        return conversation

    def _refuse_pinned(self, conversation_id: str) -> None:
        if conversation_id in self._memory.pins:
            raise ConversationBusy("This conversation is pinned to the device. Unpin it first.")
