"""Brings saved KVs back: decides whether that is worth it, and does it, on a thread of its own.

Neither the engine's thread nor the leases' lock waits for the disk: files are read ahead of their copy to the device,
and all that have arrived by then are copied between the same two steps. A restore ends early, between two segments,
when its run is stopped; what the KV holds then is a whole prefix of the ledger."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from enum import IntEnum

from model_runtime.interface.errors import ModelRuntimeError, SegmentGone, SegmentRefused
from model_runtime.interface.protocol import Engine
from sessions.errors import StoreError
from sessions.memory.device.held_kvs import HeldKVs
from sessions.memory.log import MemoryLog
from sessions.memory.memory_records import NOT_RESTORED, PLACES, Restored, RestoreRequest
from sessions.memory.moves.segment_reader import SegmentReader
from sessions.memory.saved.chains import Chain
from sessions.memory.saved.saved_kvs import SavedKVs
from sessions.memory.saved.speed import choose
from sessions.types import Tier
from sessions.worker import Worker

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 1.0  # whether the restorer's thread still runs


class Urgency(IntEnum):
    """Who waits. A turn goes before a restore ahead of the person."""

    TURN = 0
    AHEAD = 1


class Restorer:
    """`put` and `restore_for_turn` may be called from any thread; `restore` only inside what was put."""

    def __init__(self, engine: Engine, saved_kvs: SavedKVs, held: HeldKVs, memory_log: MemoryLog) -> None:
        self._engine = engine
        self._saved_kvs = saved_kvs
        self._held = held
        self._memory_log = memory_log
        self._order = itertools.count()
        self._queue: queue.PriorityQueue[tuple[int, int, Callable[[], None] | None]] = queue.PriorityQueue()
        self._closed = False
        self._worker = Worker("restorer", self._loop)

    def start(self) -> None:
        self._worker.start()

    def close(self, timeout_s: float) -> None:
        """Ends the restore at work between two segments. What was put still runs, and restores nothing."""
        self._closed = True
        self._queue.put((max(Urgency) + 1, next(self._order), None))
        self._worker.close(timeout_s)

    def put(self, urgency: Urgency, call: Callable[[], None]) -> None:
        self._queue.put((urgency, next(self._order), call))

    def restore_for_turn(self, request: RestoreRequest) -> Restored:
        """Waits until the restorer's thread has done it, before anything that is restored ahead. Never raises."""
        results: list[Restored] = []
        ended = threading.Event()

        def call() -> None:
            results.append(self.restore(request))
            ended.set()

        self.put(Urgency.TURN, call)
        while not ended.wait(LOOK_AGAIN_S):
            if not self._worker.is_alive:  # the server is ending
                return NOT_RESTORED
        return results[0]

    def restore(self, request: RestoreRequest) -> Restored:
        """Fills the request's KV from what is saved. Never raises: whatever goes wrong, the turn reads what is
        missing."""
        restored = NOT_RESTORED
        try:
            restored = self._restore(request)
            if restored.tier is Tier.DISK and not restored.lender_id:
                ids = request.ledger[: restored.tokens]
                self._held.saved(request.conversation_id, request.kv, ids, self._is_long_rope(request))
            self._memory_log.restored(request.owner_id, request.conversation_id, restored)
        except StoreError as error:  # already logged with the database's trouble
            log.warning("kv_not_restored conversation=%s error=%s", request.conversation_id, error)
        except Exception:
            log.exception("kv_not_restored conversation=%s", request.conversation_id)
        return restored

    def _restore(self, request: RestoreRequest) -> Restored:
        """From what is saved of the conversation, else from another one that begins alike. Raises `SessionError` when
        the database fails; the KV is then as it was, or holds a whole prefix."""
        restored = self._restore_from(request.conversation_id, request)
        if restored is not NOT_RESTORED:
            return restored
        known_tokens = max(request.useful_tokens, request.shared_tokens)
        lender_id = self._saved_kvs.disk.twin(
            request.owner_id,
            request.conversation_id,
            request.ledger[:-1],
            known_tokens,
            self._is_long_rope(request),
        )
        if not lender_id:
            return restored
        borrowed = self._restore_from(lender_id, replace(request, useful_tokens=known_tokens))
        return replace(borrowed, lender_id=lender_id) if borrowed is not NOT_RESTORED else borrowed

    def _restore_from(self, source_id: str, request: RestoreRequest) -> Restored:
        with self._saved_kvs.using(source_id):
            chain = self._affordable(source_id, request)
            if chain.useful_tokens <= request.useful_tokens or request.must_stop() or self._closed:
                return NOT_RESTORED
            restore_s, rest_s, read_s = self._expectations(request, chain)
            read_tokens = len(request.ledger) - request.useful_tokens
            tier = self._saved_kvs.tier_of(chain)
            choice = choose(restore_s, rest_s, read_s, chain.size_bytes, read_tokens, PLACES[tier])
            if not choice.restores:
                self._saved_kvs.declined(tier)
                return Restored(choice=choice.sentence, is_reread_cheaper=True)
            return replace(self._bring_back(source_id, request, chain), choice=choice.sentence)

    def _is_long_rope(self, request: RestoreRequest) -> bool:
        """Whether the rows that it needs have the long frequencies of long RoPE."""
        return self._engine.info.is_long_rope(len(request.ledger))

    def _affordable(self, source_id: str, request: RestoreRequest) -> Chain:
        """The longest chain; where its last segment goes on beyond the ledger and the promise, one without it."""
        find, ids = self._saved_kvs.chain, request.ledger[:-1]
        is_long = self._is_long_rope(request)
        chain = find(request.owner_id, source_id, ids, is_long_rope=is_long)
        if self._engine.kv_bytes(chain.end_tokens) > request.promised_bytes:
            chain = find(request.owner_id, source_id, ids, len(request.ledger), is_long)
        return chain

    def _expectations(self, request: RestoreRequest, chain: Chain) -> tuple[float, float, float]:
        whole = len(request.ledger)
        return (
            self._saved_kvs.restore_s(chain),
            self._engine.estimate_read_s(chain.useful_tokens, whole),
            self._engine.estimate_read_s(request.useful_tokens, whole),
        )

    def _bring_back(self, source_id: str, request: RestoreRequest, chain: Chain) -> Restored:
        """Where it stops early, the KV holds a whole prefix, and what host memory holds stays there."""
        started = time.perf_counter()
        tier = self._saved_kvs.tier_of(chain)
        if request.kv.length_tokens:
            self._engine.release(request.kv)
        count, size_bytes, refusal, is_gone, waited_s = 0, 0, "", False, 0.0
        room_tokens = max(chain.end_tokens, len(request.ledger))
        with SegmentReader(chain.identities, self._saved_kvs.load, self._engine.info.kv_bytes_per_token) as arrivals:
            try:
                while not (request.must_stop() or self._closed) and (segments := arrivals.take()):
                    asked = time.perf_counter()
                    work_s = self._engine.restore(request.kv, segments, room_tokens)
                    waited_s += time.perf_counter() - asked - work_s
                    count += len(segments)
                    size_bytes += sum(segment.data_bytes for segment in segments)
            except SegmentRefused as error:
                refused, refusal, is_gone = chain.identities[count], str(error), isinstance(error, SegmentGone)
                log.warning("kv_refused conversation=%s key=%s why=%s", request.conversation_id, refused.key, refusal)
                self._saved_kvs.disk.discard(refused, error)
            except (ModelRuntimeError, ValueError) as error:
                log.warning("kv_not_restored conversation=%s error=%s", request.conversation_id, error)
        seconds = time.perf_counter() - started
        self._saved_kvs.took(chain.identities[:count], tier, max(seconds - waited_s, arrivals.reading_s))
        is_own = source_id == request.conversation_id
        self._saved_kvs.brought_back(source_id, chain, whole=is_own and count == len(chain.identities))
        tokens = min(request.kv.length_tokens, chain.useful_tokens)
        log.info(
            "kv_restored conversation=%s tier=%s tokens=%d bytes=%d seconds=%.3f segments=%d of=%d",
            *(request.conversation_id, tier.value, tokens, size_bytes, seconds, count, len(chain.identities)),
        )
        return Restored(tokens, size_bytes, seconds, refusal=refusal, is_gone=is_gone, tier=tier)

    def _loop(self) -> None:
        while (call := self._queue.get()[2]) is not None:
            try:
                call()
            except Exception:
                log.exception("restore_failed")
