"""Which conversations stay on the device whatever others need, and how much may be pinned.

Pins take half of the budget at most, all owners' together. The other half is what unpinned turns and the owners'
guaranteed shares live on, so a pin can never bring another owner to a standstill. Whether a pin or a turn fits is
decided before any work is done, and both decisions are made under one lock: neither can invalidate the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from model_runtime.interface.protocol import Engine
from sessions.errors import CacheFull
from sessions.store.records import Conversation
from sessions.text import mib

PINNABLE_SHARE = 0.5  # of the device budget


class Pins:
    """Any thread. `is_busy` says whether a conversation has a turn under way."""

    def __init__(self, engine: Engine, budget_bytes: int, is_busy: Callable[[str], bool]) -> None:
        self.limit_bytes = int(budget_bytes * PINNABLE_SHARE)
        self._budget_bytes = budget_bytes
        self._engine = engine
        self._is_busy = is_busy
        self._lock = threading.Lock()
        self._claims: dict[str, int] = {}  # bytes a pinned conversation holds, or will when it is on the device
        self._turns: dict[str, int] = {}  # bytes that turns which were let in may grow to

    def load(self, pinned: Iterable[Conversation]) -> list[Conversation]:
        """At the start, the most recently used first. Returns those that do not fit a budget that became smaller."""
        left_out = []
        for conversation in pinned:
            claim_bytes = self._engine.kv_bytes(conversation.ledger_tokens)
            if self.total_bytes + claim_bytes > self.limit_bytes:
                left_out.append(conversation)
            else:
                self._claims[conversation.conversation_id] = claim_bytes
        return left_out

    @property
    def total_bytes(self) -> int:
        with self._lock:
            return sum(self._claims.values())

    def conversations(self) -> set[str]:
        with self._lock:
            return set(self._claims)

    def __contains__(self, conversation_id: str) -> bool:
        with self._lock:
            return conversation_id in self._claims

    def pin(self, conversation_id: str, ledger_tokens: int, held_bytes: int) -> None:
        """Raises `CacheFull` with the numbers when it does not fit, and nothing was changed then."""
        claim_bytes = max(held_bytes, self._engine.kv_bytes(ledger_tokens))
        with self._lock:
            others_bytes = sum(bytes_ for c, bytes_ in self._claims.items() if c != conversation_id)
            if others_bytes + claim_bytes > self.limit_bytes:
                raise CacheFull(
                    f"This conversation needs {mib(claim_bytes)} on the device, and {mib(others_bytes)} are pinned "
                    f"already; {mib(self.limit_bytes)} may be pinned, half of the budget. Unpin another conversation, "
                    "or start the server with a larger --device-kv-budget."
                )
            turns = [bytes_ for c, bytes_ in self._turns.items() if c != conversation_id and self._is_busy(c)]
            if others_bytes + claim_bytes + max(turns, default=0) > self._budget_bytes:
                raise CacheFull(
                    f"A turn that is under way was promised {mib(max(turns))} of the {mib(self._budget_bytes)} budget; "
                    f"{mib(claim_bytes)} cannot be pinned beside it. Try again when it has ended."
                )
            self._claims[conversation_id] = claim_bytes

    def unpin(self, conversation_id: str) -> None:
        with self._lock:
            self._claims.pop(conversation_id, None)

    def admit(self, conversation_id: str, promised_bytes: int) -> None:
        """Admits a turn whose KV may grow to `promised_bytes`. Raises `CacheFull` with the numbers when it could never
        be granted beside what is pinned."""
        with self._lock:
            others_bytes = sum(bytes_ for c, bytes_ in self._claims.items() if c != conversation_id)
            is_pinned = conversation_id in self._claims
            # What it already holds, for example of a longer branch, stays with it.
            promised_bytes = max(promised_bytes, self._claims.get(conversation_id, 0))
            if is_pinned and others_bytes + promised_bytes > self.limit_bytes:
                raise CacheFull(
                    f"This conversation is pinned, and this turn may grow it to {mib(promised_bytes)}; beside the "
                    f"{mib(others_bytes)} of other pins, {mib(max(0, self.limit_bytes - others_bytes))} may be pinned. "
                    "Unpin it or another one, or lower the limit of new tokens."
                )
            if others_bytes + promised_bytes > self._budget_bytes:
                raise CacheFull(
                    f"This turn may need {mib(promised_bytes)} of memory, but {mib(others_bytes)} of the "
                    f"{mib(self._budget_bytes)} budget are pinned. Unpin a conversation, lower the limit of new "
                    "tokens, or start the server with a larger --device-kv-budget."
                )
            self._turns[conversation_id] = promised_bytes
            if is_pinned:
                self._claims[conversation_id] = promised_bytes

    def room_bytes(self, conversation_id: str) -> int:
        """The most that a turn may be promised beside what is pinned."""
        with self._lock:
            others_bytes = sum(bytes_ for c, bytes_ in self._claims.items() if c != conversation_id)
            limit_bytes = self.limit_bytes if conversation_id in self._claims else self._budget_bytes
            return max(0, limit_bytes - others_bytes)

    def may_hold(self, conversation_id: str, promised_bytes: int) -> bool:
        """Whether a restore to `promised_bytes` keeps the pins within what may be pinned; then they are its claim."""
        with self._lock:
            if conversation_id not in self._claims:
                return True
            others_bytes = sum(bytes_ for c, bytes_ in self._claims.items() if c != conversation_id)
            if others_bytes + promised_bytes > self.limit_bytes:
                return False
            self._claims[conversation_id] = max(promised_bytes, self._claims[conversation_id])
            return True

    def settled(self, conversation_id: str, held_bytes: int, was_turn: bool) -> None:
        """Its KV was given back and holds `held_bytes`."""
        with self._lock:
            if was_turn:
                self._turns.pop(conversation_id, None)
            if conversation_id in self._claims:
                self._claims[conversation_id] = held_bytes
