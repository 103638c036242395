"""A turn's rows on their way to the disk: what the device may forget meanwhile, and what is said if they never get
there."""

from __future__ import annotations

import contextlib

from model_runtime.interface.protocol import KV
from sessions.errors import SessionError
from sessions.memory.device.leases import Leases
from sessions.memory.log import MemoryLog
from sessions.memory.saved.saved_kvs import SavedKVs
from sessions.turns.run import Run


class Saving:
    """`staged` and `done` are those of a `SaveJob` for what `kv` holds after a run: `ids`."""

    def __init__(
        self, run: Run, kv: KV, ids: tuple[int, ...], leases: Leases, saved_kvs: SavedKVs, memory_log: MemoryLog
    ) -> None:
        self._owner_id = run.plan.owner_id
        self._conversation_id = run.conversation_id
        self._kv = kv
        self._ids = ids
        self._leases = leases
        self._saved_kvs = saved_kvs
        self._memory_log = memory_log
        self._was_staged = False

    def staged(self) -> None:
        """All of it is in memory: the device may forget it."""
        self._was_staged = True
        self._are_safe(self._ids)

    def done(self, saved: bool) -> None:
        """It is on disk, or never will be. A KV that went for room in between was taken to be saved then."""
        self._are_safe(self._ids if saved else self._ids[: self._on_disk_tokens()])
        if not saved and self._was_staged and self._leases.went_for_room(self._conversation_id):
            lost_tokens = len(self._ids) - self._kept_tokens()
            if lost_tokens:
                self._memory_log.lost_on_the_way(self._owner_id, self._conversation_id, lost_tokens)

    def _are_safe(self, ids: tuple[int, ...]) -> None:
        self._leases.saved(self._conversation_id, self._kv, ids)
        self._leases.staged(self._conversation_id, self._kv)

    def _on_disk_tokens(self) -> int:
        """What earlier turns, or the first of this one's files, left there. Nothing when the database is closed."""
        with contextlib.suppress(SessionError):
            return self._saved_kvs.disk.chain(self._owner_id, self._conversation_id, self._ids).useful_tokens
        return 0

    def _kept_tokens(self) -> int:
        """The same with what host memory has."""
        with contextlib.suppress(SessionError):
            return self._saved_kvs.chain(self._owner_id, self._conversation_id, self._ids).useful_tokens
        return len(self._ids)  # nobody is told anything any more
