"""Verifies a conversation's memory on request, on its own thread.

It needs a throw-away KV beside the one it checks, with room reserved through a lease like any other KV. It gives way to
a run that waits for either of the two, and starts again when that run has ended."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from model_runtime.interface.errors import ModelRuntimeError
from model_runtime.interface.protocol import Engine
from sessions.awake import AwakeClock
from sessions.errors import CacheFull, SessionError
from sessions.ledger.ledger import common_prefix, fold
from sessions.memory.device.slots import Ticket
from sessions.memory.memory import Memory
from sessions.memory.memory_records import Check, Lease, Loss
from sessions.store.store import Store
from sessions.text import mib, tokens
from sessions.turns.run import RunTable
from sessions.types import CheckView
from sessions.verify.compare import check, disk_copy, host_copy, saved_with_long_rope
from sessions.worker import Worker

log = logging.getLogger(__name__)

ROOM_TIMEOUT_S = 2.0  # waiting for room, while later tickets wait behind it
PATIENCE_S = 60.0  # how long it keeps starting again after it gave way
PAUSE_S = 0.05
NOTHING = "there is nothing to verify, on the device or on disk"
GAVE_WAY = "it was not verified, because answers needed the memory; try again when the server is less busy"
ENDED = "it was not verified, because the server was shutting down"


@dataclass(eq=False)
class Verifying:
    """One requested verification. Any thread may call `wait`."""

    owner_id: str
    conversation_id: str
    read_tokens: Callable[[], int] = lambda: 0
    total_tokens: int = 0
    _result: Check | None = None
    _done: threading.Event = field(default_factory=threading.Event)

    def wait(self, timeout_s: float | None = None) -> Check | None:
        """What was found; None after `timeout_s`."""
        self._done.wait(timeout_s)
        return self._result

    def finish(self, result: Check) -> None:
        self._result = result
        self._done.set()

    def view(self) -> CheckView:
        result = self._result
        if result is None:
            progress = "waiting to be verified"
            if self.total_tokens:
                progress = f"reading {self.read_tokens():,} of {tokens(self.total_tokens)} again"
            return CheckView(is_running=True, agrees=None, sentence=progress, at=time.time())
        return CheckView(is_running=False, agrees=result.agrees, sentence=result.sentence, at=result.at)


class Verifier:
    """Any thread may call `verify` and `views`."""

    def __init__(self, store: Store, engine: Engine, memory: Memory, runs: RunTable) -> None:
        self._store = store
        self._engine = engine
        self._held = memory.held
        self._leases = memory.leases
        self._saved_kvs = memory.saved_kvs
        self._memory_log = memory.log
        self._runs = runs
        self._queue: queue.SimpleQueue[Verifying | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._known: dict[str, Verifying] = {}  # the newest of each conversation
        self._closed = False
        self._worker = Worker("verifier", self._loop)

    def start(self) -> None:
        self._worker.start()

    def close(self, timeout_s: float) -> None:
        """Stops the current verification within one chunk; those that still wait end as not verified."""
        self._closed = True
        self._queue.put(None)
        self._worker.close(timeout_s)

    def verify(self, owner_id: str, conversation_id: str) -> Verifying:
        """Begins a verification, or returns the one that is already queued or running. Raises
        `ConversationNotFound`."""
        self._store.conversation(owner_id, conversation_id)
        with self._lock:
            request = self._known.get(conversation_id)
            if request is None or request.wait(0) is not None:
                request = self._known[conversation_id] = Verifying(owner_id, conversation_id)
                self._queue.put(request)
        return request

    def views(self) -> dict[str, CheckView]:
        """The newest verification of each conversation."""
        with self._lock:
            return {conversation_id: one.view() for conversation_id, one in self._known.items()}

    def forget(self, conversation_id: str) -> None:
        """Drops the results of a deleted conversation."""
        with self._lock:
            self._known.pop(conversation_id, None)

    def _loop(self) -> None:
        while (request := self._queue.get()) is not None:
            result = Check(time.time(), ENDED)
            try:
                if not self._closed:
                    result = self._try_until_done(request)
            except (SessionError, ModelRuntimeError) as error:
                result = Check(time.time(), f"it could not be verified. {error}")
            except Exception:
                log.exception("verify_failed conversation=%s", request.conversation_id)
                result = Check(time.time(), "it could not be verified; the server's log says why")
            finally:
                with contextlib.suppress(SessionError):
                    self._memory_log.verified(request.owner_id, request.conversation_id, result)
                request.finish(result)

    def _try_until_done(self, request: Verifying) -> Check:
        elapsed = AwakeClock()
        while elapsed.look() < PATIENCE_S and not self._closed:
            if not self._runs.is_busy(request.conversation_id):
                result = self._once(request)
                if result is not None:
                    return result
            time.sleep(PAUSE_S)
        return Check(time.time(), ENDED if self._closed else GAVE_WAY)

    def _once(self, request: Verifying) -> Check | None:
        """One attempt. None when it gave way."""
        owner_id, conversation_id = request.owner_id, request.conversation_id
        conversation = self._store.conversation(owner_id, conversation_id)
        ledger = fold(self._store.messages.path(conversation.leaf_id))
        held = self._held.borrow(conversation_id)
        result: Check | None = None
        try:
            with self._saved_kvs.using(conversation_id):
                host, disk, ids = self._saved_kvs.host, self._saved_kvs.disk, ledger[:-1]
                if held is not None and held.kv.length_tokens:
                    is_long = held.kv.is_long_rope
                else:
                    is_long = saved_with_long_rope(self._saved_kvs, owner_id, conversation_id, ids)
                copies = [
                    disk_copy(disk, owner_id, conversation_id, ids, is_long),
                    host_copy(host, disk, owner_id, conversation_id, ids, is_long),
                ]
                held_tokens = common_prefix(held.held_ids, ids) if held else 0
                kept_tokens = max(held_tokens, *(copy.chain.useful_tokens for copy in copies))
                if not kept_tokens:
                    return Check(time.time(), NOTHING)
                with self._scratch(owner_id, conversation_id, kept_tokens + 1, held) as scratch:
                    if scratch is None:
                        return None
                    request.total_tokens = kept_tokens
                    request.read_tokens = lambda: min(kept_tokens, scratch.kv.length_tokens)
                    result = check(
                        self._engine,
                        conversation_id,
                        ledger[: kept_tokens + 1],
                        [copy for copy in copies if copy.chain.identities],
                        held.kv if held else None,
                        scratch.kv,
                        lambda: self._must_stop(scratch, held),
                        is_long,
                    )
        finally:
            request.total_tokens = 0
            if held is not None:
                self._give_back(held, result is not None and result.device_is_bad)
        return result

    def _must_stop(self, scratch: Lease, held: Lease | None) -> bool:
        leases = [scratch, *([held] if held else [])]
        return self._closed or any(self._held.must_yield(lease) for lease in leases)

    def _give_back(self, held: Lease, is_bad: bool) -> None:
        """Returns a borrowed KV. One that disagreed is emptied before any other run can use it."""
        if is_bad:
            self._engine.release(held.kv)
        loss = Loss.DISAGREED if is_bad else None
        self._held.settle(held, () if is_bad else held.held_ids, loss=loss, ahead_from=held.ahead_from)

    @contextlib.contextmanager
    def _scratch(self, owner_id: str, conversation_id: str, count: int, held: Lease | None) -> Iterator[Lease | None]:
        """A throw-away KV with room for `count` tokens; idle KVs may be evicted for it. None when there is no room now.
        Raises `CacheFull` when there can never be room."""
        promised_bytes = self._engine.kv_bytes(count)
        held_bytes = held.kv.allocated_bytes if held else 0
        if promised_bytes + held_bytes > self._held.budget_bytes:
            raise CacheFull(
                f"Reading it again takes {mib(promised_bytes)} in addition to the {mib(held_bytes)} it holds, and the "
                f"device budget is {mib(self._held.budget_bytes)}. Park it first; it is then verified from disk."
            )
        name = f"{conversation_id} read again"
        lease = self._held.reserve(name, owner_id, promised_bytes) or self._wait_for_room(
            name, owner_id, promised_bytes
        )
        try:
            yield lease
        finally:
            if lease is not None:
                self._engine.release(lease.kv)
                self._held.settle(lease)
                self._leases.forget(name)

    def _wait_for_room(self, name: str, owner_id: str, promised_bytes: int) -> Lease | None:
        ticket = Ticket(name, owner_id, promised_bytes)
        self._leases.enter(ticket)
        with contextlib.suppress(CacheFull):
            lease = ticket.wait(ROOM_TIMEOUT_S)
            if lease is not None or self._leases.leave(ticket) or self._closed:
                return lease
            return ticket.wait(PATIENCE_S)  # the grant is already under way
        return None
