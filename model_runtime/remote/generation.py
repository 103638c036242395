"""One request to a remote engine, from the choice of a server to its last event."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

from model_runtime.interface.events import Event, Finished, FinishReason, Listener, PrefillProgress
from model_runtime.interface.protocol import GenerationRequest
from model_runtime.read_speed import ReadSpeed
from model_runtime.remote.answer import Answer, AnswerRules
from model_runtime.remote.connection import Clock, encoded, garbage, no_room
from model_runtime.remote.dialects.dialect import Dialect, End, Piece, Seat
from model_runtime.remote.kv import RemoteKV
from model_runtime.remote.server import Server
from model_runtime.remote.servers import Servers
from model_runtime.remote.trouble import EngineTrouble, Full, Garbage, Kind, LeftOut

logger = logging.getLogger(__name__)

BUSY_PATIENCE_S = 20.0  # for servers that have no room
AWAY_PATIENCE_S = 1.0  # for servers that may be about to come back
FIRST_PAUSE_S = 0.2  # doubles
QUESTION_AFTER_S = 0.002
# Twice as many with each time that ids were left out of an answer, up to these: a server may count a draft before it
# sends it, and then something seems to lack in every event.
MOST_AT_ONCE_TOKENS = 256
LAST_EVENT_S = 2.0  # how long the receipt's figures are waited for, once the answer has ended
_ELSEWHERE = (Kind.AWAY, Kind.BROKEN, Kind.BUSY, Kind.SLOW, Kind.GARBAGE, Kind.FAILED, Kind.CHANGED)
_KEPT = "What was written is kept: continue the answer, or regenerate it."


class RemoteGeneration:
    """Implements `model_runtime.interface.protocol.Generation`. `run` and everything below is for the loop's thread.

    Before the first id another try is safe: the server keeps nothing that the next one would see twice. After it the
    answer ends as LOST, and what arrived is kept."""

    def __init__(
        self,
        request: GenerationRequest,
        kv: RemoteKV,
        listener: Listener,
        rules: AnswerRules,
        servers: Servers,
        speed: ReadSpeed,
        session_header: str,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._request = request
        self._kv = kv
        self._listener = listener
        self._answer = Answer(request, rules)
        self._servers = servers
        self._speed = speed
        self._headers = {session_header: request.affinity} if request.affinity else {}
        self._loop = loop
        self._task: asyncio.Task[None] | None = None
        self._is_aborted = self._is_finished = False
        self._submitted_at = time.perf_counter()
        self._asked_at = self._submitted_at
        self._first_token_at: float | None = None
        self._reused_tokens: int | None = None
        self._asked_again_at: float | None = None  # since ids were left out
        self._seat: Seat | None = None

    def abort(self) -> None:
        """Closes the stream, which ends the server's work."""
        self._call(self._abort)

    def start(self) -> None:
        """From any thread."""
        self._call(self._begin)

    def finish(self, reason: FinishReason, error: str | None = None) -> None:
        """Emits the last event. Only the first call has an effect."""
        if not self._is_finished:
            self._is_finished = True
            self._emit(self._summary(reason, error))

    def _call(self, call: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:  # the engine was closed: its loop ended, and every generation with it
            self.finish(FinishReason.ABORTED)

    def _begin(self) -> None:
        if self._is_aborted:
            self.finish(FinishReason.ABORTED)
            return
        self._task = self._loop.create_task(self._run())
        self._task.add_done_callback(lambda _: self.finish(FinishReason.ABORTED))  # cancelled before its first step

    def _abort(self) -> None:
        self._is_aborted = True
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            await self._from_any_server()
        except asyncio.CancelledError:
            self.finish(FinishReason.ABORTED)
        except EngineTrouble as trouble:
            if self._answer.ids:
                self.finish(FinishReason.LOST, f"{trouble.sentence} {_KEPT}")
            else:
                self.finish(FinishReason.FAILED, f"{trouble.sentence} Your message is kept: regenerate the answer.")
        except Exception:
            logger.exception("remote_generation_failed")
            self.finish(FinishReason.FAILED, "Something went wrong while this answer was fetched. Regenerate it.")

    async def _from_any_server(self) -> None:
        tried: set[Server] = set()
        pause_s, started, has_reconnected = FIRST_PAUSE_S, time.monotonic(), False
        while True:
            server = self._servers.choose(self._request.affinity, tried)
            assert server is not None, "one is left whenever another try is made"
            try:
                await self._from(server)
                return
            except EngineTrouble as trouble:
                if trouble.kind is Kind.BROKEN and not (self._answer.ids or has_reconnected):
                    has_reconnected = True
                    continue
                server.failed(trouble)
                if self._answer.ids or trouble.kind not in _ELSEWHERE:
                    raise
                logger.warning("engine_try_failed address=%s why=%s", server.address, trouble.sentence)
                tried.add(server)
                if self._servers.choose(self._request.affinity, tried) is not None:
                    continue
                pause_s = _pause_s(trouble, pause_s, time.monotonic() - started)
            await asyncio.sleep(pause_s)
            pause_s *= 2
            tried.clear()

    async def _from(self, server: Server) -> None:
        """Asks the server who it is beside the request, and believes nothing of the answer before it has said so. A
        server that was away is asked first, and one whose slot has to be moved: another model's rows must not be saved
        under this one's name."""
        slots = server.slots
        if not server.is_well or (slots is not None and not slots.has(self._request.affinity)):
            await server.make_sure()
        dialect = server.sure_dialect
        self._reused_tokens = self._asked_again_at = None
        server.asked()
        server.active += 1
        slots, ledger_tokens = server.slots, len(self._request.ledger)
        try:
            self._seat = await slots.take(self._request.affinity, ledger_tokens) if slots is not None else None
        except BaseException:
            server.active -= 1
            raise
        sure = self._loop.create_task(_asked_beside(server))
        answer = self._loop.create_task(self._stream(server, dialect, sure))
        try:
            await asyncio.wait((sure, answer), return_when=asyncio.FIRST_COMPLETED)
            if answer.done() and answer.exception() is not None and not self._answer.ids:
                await sure  # why it failed, if the server is no longer what it was
            if sure.done():
                await sure
            await answer
        finally:
            try:
                await _ended(sure, answer)
            finally:  # also if the engine is closed just now: a slot that is given back is saved
                server.active -= 1
                if slots is not None and self._seat is not None:
                    slots.give_back(self._seat, ledger_tokens + len(self._answer.ids) if self._first_token_at else 0)

    async def _stream(self, server: Server, dialect: Dialect, sure: asyncio.Task[None]) -> None:
        self._asked_at = time.perf_counter()
        for hole in itertools.count(1):
            try:
                await self._stream_once(server, dialect, sure)
                return
            except LeftOut as left_out:
                self._asked_again_at = self._asked_again_at or time.perf_counter()
                logger.info("engine_left_out_ids address=%s tokens=%d", server.address, left_out.tokens)
                least_tokens = min(2**hole, MOST_AT_ONCE_TOKENS)
                if await self._take_at_once(server, dialect, left_out, max(left_out.tokens, least_tokens)):
                    return

    async def _stream_once(self, server: Server, dialect: Dialect, sure: asyncio.Task[None]) -> None:
        body = encoded(dialect.body(self._answer.ask(slot=self._slot)))
        clock = Clock()
        async with server.connection.stream(dialect.path, body, clock, self._headers) as events:
            async for event in events:
                await sure
                piece = self._piece(server, dialect, event)
                if clock.hear(piece.token_ids, min(piece.read_tokens or 0, len(self._request.ledger))):
                    server.heard()
                reason = self._take(server, piece)
                if reason is not None:
                    if piece.end is not None or reason is not FinishReason.STOP_STRING:
                        await _understood(server, self._wait_for_figures(dialect, events))
                    self.finish(reason)
                    return
        raise EngineTrouble(Kind.GARBAGE, f"The engine at {server.address} ended the stream before the answer.")

    async def _take_at_once(self, server: Server, dialect: Dialect, left_out: LeftOut, tokens: int) -> bool:
        """Ids that a stream left out are asked for in one event, which has all of so many. Returns whether the answer
        ended with them."""
        wanted = self._answer.ask(tokens, slot=self._slot, is_streamed=False)
        event = await server.connection.answer(dialect.path, encoded(dialect.body(wanted)), self._headers)
        piece = self._piece(server, dialect, event)
        if not piece.token_ids:
            raise garbage(server.address, str(left_out)) from left_out
        reason = self._take(server, replace(piece, end=None if piece.end is End.LENGTH else piece.end))
        if reason is not None:
            self.finish(reason)
        return reason is not None

    @property
    def _slot(self) -> int | None:
        return None if self._seat is None else self._seat.slot

    def _take(self, server: Server, piece: Piece) -> FinishReason | None:
        """Emits what a piece says. Returns why the answer ends, or None."""
        ledger_tokens = len(self._request.ledger)
        self._note_reuse(piece)
        if piece.read_tokens is not None and not self._answer.ids:
            total = max(piece.read_tokens, ledger_tokens - (self._reused_tokens or 0))
            self._emit(PrefillProgress(piece.read_tokens, total))
        for place, token_id in enumerate(piece.token_ids):
            if self._first_token_at is None:
                self._first_token_at = time.perf_counter()
            try:
                event, reason = self._answer.take(token_id, piece.logprobs[place] if piece.logprobs else None)
            except Garbage as error:
                raise garbage(server.address, str(error)) from error
            self._emit(event)
            if reason is not None:
                return reason
        if piece.end is End.STOP and not self._answer.ids:
            raise garbage(server.address, "it ended the answer without a token")
        if piece.end is End.STOP:
            return self._answer.end_unasked()
        if piece.end is not None:
            raise EngineTrouble(
                Kind.FAILED,
                f"The engine at {server.address} ended the answer after {len(self._answer.ids):,} tokens, before the "
                "limit that it was given.",
            )
        return None

    async def _wait_for_figures(self, dialect: Dialect, events: AsyncIterator[dict[str, Any]]) -> None:
        """The server ends by itself in a moment, and says at last what it reused. Read to its end, the connection
        serves the next answer too. None of it is worth much waiting."""
        with contextlib.suppress(TimeoutError, EngineTrouble):
            async with asyncio.timeout(LAST_EVENT_S):
                async for event in events:
                    self._note_reuse(dialect.piece(event, None))

    def _note_reuse(self, piece: Piece) -> None:
        """Of the prompt, for which a server is asked first: what it says of later requests is about what it has just
        read. A claim beyond the prompt is none."""
        reused = piece.reused_tokens
        if reused is not None and reused <= len(self._request.ledger) and self._asked_again_at is None:
            self._reused_tokens = reused

    def _piece(self, server: Server, dialect: Dialect, event: dict[str, Any]) -> Piece:
        try:
            return self._answer.whole(dialect.piece(event, self._answer.since_asked))
        except LeftOut:
            raise
        except Full as error:
            raise no_room(server.address, str(error)) from error
        except Garbage as error:
            raise garbage(server.address, str(error)) from error

    def _summary(self, reason: FinishReason, error: str | None) -> Finished:
        now, first, ids = time.perf_counter(), self._first_token_at, len(self._answer.ids)
        ledger_tokens, reused = len(self._request.ledger), self._reused_tokens
        has_begun = first is not None
        if first is not None:
            self._kv.length_tokens = ledger_tokens + max(0, ids - self._answer.cut_tokens - 1)
            if reused is not None and first <= (self._asked_again_at or now):
                self._speed.observe(reused, ledger_tokens, first - self._asked_at)
        is_reported = reused is not None
        return Finished(
            reason=reason,
            fed_tokens=ledger_tokens - reused if reused is not None and has_begun else 0,
            reused_tokens=reused if reused is not None and has_begun else 0,
            sampled_tokens=ids,
            ttft_s=None if first is None else first - self._submitted_at,
            prefill_s=(first or now) - self._submitted_at,
            decode_s=0.0 if first is None else now - first,
            text_tail=self._answer.tail(),
            error=error,
            cut_tokens=self._answer.cut_tokens,
            part_ids=self._answer.part_ids,
            stop_string=self._answer.stop_string,
            is_reuse_reported=is_reported or not has_begun,
            **self._restored(),
        )

    def _restored(self) -> dict[str, Any]:
        seat, reused = self._seat, self._reused_tokens
        if seat is None or not seat.restored_tokens or reused is None:
            return {}
        note = seat.note(len(self._request.ledger), reused)
        return {"restored_bytes": seat.restored_bytes, "restore_s": seat.restore_s, "restore_note": note}

    def _emit(self, event: Event) -> None:
        try:
            self._listener(event)
        except Exception:  # a failing listener must not end other requests
            logger.exception("listener failed event=%s", type(event).__name__)


async def _ended(*tasks: asyncio.Task[None]) -> None:
    """Whatever they raised was raised where they were waited for, or came too late."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _asked_beside(server: Server) -> None:
    """The question goes out just after the request, which would wait for it a millisecond otherwise."""
    await asyncio.sleep(QUESTION_AFTER_S)
    await server.make_sure()


async def _understood(server: Server, work: Awaitable[None]) -> None:
    try:
        await work
    except Garbage as error:
        raise garbage(server.address, str(error)) from error


def _pause_s(trouble: EngineTrouble, pause_s: float, waited_s: float) -> float:
    """How long to wait before all servers are tried again. Raises the trouble when there is no sense in it."""
    limits_s = {Kind.BUSY: BUSY_PATIENCE_S, Kind.AWAY: AWAY_PATIENCE_S, Kind.BROKEN: AWAY_PATIENCE_S}
    patience_s = limits_s.get(trouble.kind, 0.0)
    wait_s = max(pause_s, trouble.retry_after_s or 0.0)
    if waited_s + wait_s > patience_s:
        raise trouble
    return wait_s
