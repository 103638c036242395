"""llama.cpp's slots: which conversation each one holds, and their way to the server's disk and back.

Only where the server was started with `--slot-save-path`. A slot is saved when another conversation needs it and when
Keepwarm ends; it is restored before the next turn of its conversation, also after a restart of either side.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b

from model_runtime.remote.connection import Connection
from model_runtime.remote.dialects.dialect import Seat, count_in
from model_runtime.remote.trouble import EngineTrouble, Kind

logger = logging.getLogger(__name__)

WORTH_TOKENS = 256  # fewer are read in a moment
MOVE_S = 60.0  # for a slot of gigabytes
_PROBE = {"filename": "../keepwarm"}  # no valid name: refused after the question whether slots can be saved at all


@dataclass(eq=False, slots=True)
class _Slot:
    number: int
    affinity: str = ""  # whose rows it has
    tokens: int = 0
    used_at: float = 0.0
    is_busy: bool = False


class LlamaSlots:
    """Only on the loop's thread. `model` identifies what the rows were computed with: another model's are never
    restored, because they have other names."""

    def __init__(self, connection: Connection, slots: int, model: str) -> None:
        self._connection = connection
        self._model = model
        self._slots = [_Slot(number) for number in range(slots)]
        self._freed = asyncio.Event()

    def has(self, affinity: str) -> bool:
        """Whether a free slot has the conversation's rows, or the answer needs none of a conversation's."""
        return not affinity or any(slot.affinity == affinity and not slot.is_busy for slot in self._slots)

    async def take(self, affinity: str, ledger_tokens: int) -> Seat | None:
        """A slot for an answer, with what was saved of its conversation, once one is free; None for an answer that
        belongs to no conversation: the server chooses. Raises `EngineTrouble` when it is away."""
        if not affinity:
            return None
        while not (free := [slot for slot in self._slots if not slot.is_busy]):
            self._freed.clear()
            await self._freed.wait()
        slot = min(free, key=lambda one: (one.affinity != affinity, bool(one.affinity), one.used_at))
        with self._busy(slot):
            if slot.affinity == affinity:
                return Seat(slot.number)
            await self._save(slot)
            slot.affinity, slot.tokens = affinity, 0
            if ledger_tokens < WORTH_TOKENS:
                return Seat(slot.number)
            return await self._restored(slot)

    def give_back(self, seat: Seat, tokens: int) -> None:
        """An answer ended; the slot has rows of so many tokens, as far as it is known."""
        slot = self._slots[seat.slot]
        slot.is_busy, slot.tokens, slot.used_at = False, tokens, time.monotonic()
        self._freed.set()

    async def save_all(self) -> None:
        """Before Keepwarm ends."""
        for slot in self._slots:
            if not slot.is_busy:
                await self._save(slot)

    @contextmanager
    def _busy(self, slot: _Slot) -> Iterator[None]:
        slot.is_busy = True
        try:
            yield
        except BaseException:
            slot.is_busy = False
            self._freed.set()
            raise

    async def _save(self, slot: _Slot) -> None:
        """What cannot be saved is read again."""
        if slot.tokens >= WORTH_TOKENS:
            await self._move("save", slot)

    async def _restored(self, slot: _Slot) -> Seat:
        started = time.perf_counter()
        found = await self._move("restore", slot)
        tokens = count_in(found.get("n_restored")) or 0
        if not tokens:
            return Seat(slot.number)
        return Seat(slot.number, tokens, count_in(found.get("n_read")) or 0, time.perf_counter() - started)

    async def _move(self, action: str, slot: _Slot) -> dict[str, object]:
        """{} when the server would not: it has no such file, or its disk is full."""
        try:
            path, body = f"/slots/{slot.number}?action={action}", {"filename": self._name(slot.affinity)}
            found = await self._connection.post(path, body, MOVE_S)
        except EngineTrouble as trouble:
            if trouble.kind not in (Kind.REFUSED, Kind.FAILED):
                raise
            logger.info("slot_not_moved action=%s why=%s", action, trouble.sentence)
            return {}
        logger.info("slot_moved action=%s slot=%d", action, slot.number)
        return found

    def _name(self, affinity: str) -> str:
        name = blake2b(f"{self._model}\0{affinity}".encode(), digest_size=16).hexdigest()
        return f"keepwarm-{name}.bin"


async def can_save_slots(connection: Connection) -> bool:
    """Whether the server was started with `--slot-save-path`. Changes nothing there."""
    try:
        await connection.post("/slots/0?action=save", _PROBE)
    except EngineTrouble as trouble:
        if trouble.status is None:
            raise
        return trouble.status == 400
    return False
