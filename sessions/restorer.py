"""Bringing saved KVs back: whether that is worth it, and doing it, on a thread of its own.

Neither the engine's thread nor the leases' lock waits for the disk. A restore ends early, between two segments, when
its run is stopped; what the KV holds then is a whole prefix of the ledger.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum

from model_runtime.errors import ModelRuntimeError, SnapshotRefused
from model_runtime.types import KV, Engine
from sessions.chains import Chain
from sessions.choice import RestoreSpeed, choose
from sessions.disk import Disk

log = logging.getLogger(__name__)


class Urgency(IntEnum):
    """Who waits. A turn goes before a restore ahead of the person."""

    TURN = 0
    AHEAD = 1


@dataclass(frozen=True, slots=True)
class Restored:
    """What came back for a turn. `refusal`: why a file was not trusted. `choice`: a sentence with both expectations."""

    tokens: int = 0
    size_bytes: int = 0
    seconds: float = 0.0
    choice: str = ""
    refusal: str = ""
    is_reread_cheaper: bool = False


NOT_RESTORED = Restored()


@dataclass(frozen=True, slots=True)
class Wish:
    """Fill `kv` with as much of `ledger` as is saved. It holds `useful_tokens` of it already, which a restore would
    have to beat, for it begins with an empty KV; and it may not grow beyond `promised_bytes`."""

    owner_id: str
    conversation_id: str
    kv: KV
    ledger: tuple[int, ...]
    useful_tokens: int
    promised_bytes: int
    must_stop: Callable[[], bool]


class Restorer:
    """`put` may be called from any thread; `restore` only inside what was put."""

    def __init__(self, engine: Engine, disk: Disk) -> None:
        self.speed = RestoreSpeed()
        self._engine = engine
        self._disk = disk
        self._order = itertools.count()
        self._queue: queue.PriorityQueue[tuple[int, int, Callable[[], None] | None]] = queue.PriorityQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="keepwarm-restorer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Ends the restore at work between two segments. What was put still runs, and restores nothing."""
        self._closed = True
        self._queue.put((max(Urgency) + 1, next(self._order), None))
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def put(self, urgency: Urgency, call: Callable[[], None]) -> None:
        self._queue.put((urgency, next(self._order), call))

    def restore(self, wish: Wish) -> Restored:
        """Raises `SessionError` when the database fails; the KV is then as it was, or holds a whole prefix."""
        with self._disk.using(wish.conversation_id):
            chain = self._affordable(wish)
            if chain.useful_tokens <= wish.useful_tokens or wish.must_stop() or self._closed:
                return NOT_RESTORED
            restore_s, rest_s, read_s = self._expectations(wish, chain)
            read_tokens = len(wish.ledger) - wish.useful_tokens
            choice = choose(restore_s, rest_s, read_s, chain.size_bytes, read_tokens)
            if not choice.restores:
                self.speed.declined()
                return Restored(choice=choice.sentence, is_reread_cheaper=True)
            return replace(self._bring_back(wish, chain), choice=choice.sentence)

    def _affordable(self, wish: Wish) -> Chain:
        """The longest chain; where its last segment goes on beyond the ledger and the promise, one without it."""
        find, ids = self._disk.chain, wish.ledger[:-1]
        chain = find(wish.owner_id, wish.conversation_id, ids)
        if self._engine.kv_bytes(chain.end_tokens) > wish.promised_bytes:
            chain = find(wish.owner_id, wish.conversation_id, ids, limit_tokens=len(wish.ledger))
        return chain

    def _expectations(self, wish: Wish, chain: Chain) -> tuple[float, float, float]:
        whole = len(wish.ledger)
        return (
            self.speed.estimate_s(chain.size_bytes, len(chain.identities)),
            self._engine.estimate_read_s(chain.useful_tokens, whole),
            self._engine.estimate_read_s(wish.useful_tokens, whole),
        )

    def _bring_back(self, wish: Wish, chain: Chain) -> Restored:
        started = time.perf_counter()
        if wish.kv.length_tokens:
            self._engine.release(wish.kv)
        count, size_bytes, refusal = 0, 0, ""
        for identity in chain.identities:
            if wish.must_stop() or self._closed:
                break
            try:
                segment = self._disk.load(identity)
                self._engine.restore(wish.kv, [segment])
            except SnapshotRefused as error:
                refusal = str(error)
                log.warning("kv_refused conversation=%s key=%s why=%s", wish.conversation_id, identity.key, refusal)
                self._disk.discard(identity)
                break
            except (ModelRuntimeError, ValueError) as error:
                log.warning("kv_not_restored conversation=%s error=%s", wish.conversation_id, error)
                break
            count, size_bytes = count + 1, size_bytes + segment.data_bytes
        seconds = time.perf_counter() - started
        self.speed.observe(size_bytes, count, seconds)
        self._disk.used_now(chain)
        tokens = min(wish.kv.length_tokens, chain.useful_tokens)
        log.info(
            "kv_restored conversation=%s tokens=%d bytes=%d seconds=%.3f segments=%d of=%d",
            *(wish.conversation_id, tokens, size_bytes, seconds, count, len(chain.identities)),
        )
        return Restored(tokens, size_bytes, seconds, refusal=refusal)

    def _loop(self) -> None:
        while (call := self._queue.get()[2]) is not None:
            try:
                call()
            except Exception:
                log.exception("restore_failed")
