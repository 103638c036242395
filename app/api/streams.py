"""Follows runs from the event loop: no thread waits for a run, and a run ends when its client has gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from itertools import chain
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.answers import refuse_failed
from app.problems import Problem, problem_of
from model_runtime.interface.chat import ChatMessage
from sessions.manager import SessionManager
from sessions.turns.run import Run
from sessions.types import MessageView, RunPhase, RunSnapshot

KEEP_ALIVE_S = 15.0  # proxies close a connection that is silent for a minute

T = TypeVar("T")


class Voice(Protocol):
    """How one protocol tells a run: whole, or as the pieces of a stream. `shown` is (thoughts, content) so far."""

    @property
    def media_type(self) -> str:
        """Of a stream."""

    @property
    def keep_alive(self) -> str:
        """A piece that says nothing, while nothing happens."""

    def opening(self) -> Iterable[str]:
        """What a stream begins with, at once."""

    def news(self, run: RunSnapshot, shown: tuple[str, str]) -> Iterable[str]:
        """What has come since the last call."""

    def ending(self, message: MessageView, said: ChatMessage) -> Iterable[str]:
        """The end of a stream, after all news."""

    def failing(self, problem: Problem) -> Iterable[str]:
        """The end of a stream whose answer failed."""

    def whole(self, message: MessageView, said: ChatMessage) -> dict[str, Any]:
        """The body of the response to a request that does not stream."""


class PieceStream(Response):
    """A response in pieces, the first of which is empty and not sent. When the client disconnects, the producer is
    cancelled at once, not at its next piece."""

    def __init__(self, pieces: AsyncIterator[str], media_type: str) -> None:
        self.media_type = media_type
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def produce() -> None:
            async with contextlib.aclosing(self._pieces) as pieces:  # type: ignore[type-var]
                await anext(pieces)  # closing a generator that has not begun would not run its end
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                async for text in pieces:
                    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
            await send({"type": "http.response.body", "body": b""})

        await until_gone(produce(), receive)


async def until_gone(work: Awaitable[T], receive: Receive) -> T | None:
    """The value of `work`, or None if the client disconnected first; then the work is cancelled."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, going = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, going), return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        for task in (working, going):
            task.cancel()
        await asyncio.gather(working, going, return_exceptions=True)


async def snapshots(run: Run, manager: SessionManager) -> AsyncIterator[RunSnapshot | None]:
    """The run at every change, the last one DONE; None when nothing has changed for a while. Closing the iterator early
    stops the run."""
    loop, changed = asyncio.get_running_loop(), asyncio.Event()

    def on_change() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing follows the run any more
            loop.call_soon_threadsafe(changed.set)

    end = run.watch(on_change)
    try:
        while True:
            changed.clear()
            snapshot = run.snapshot()
            yield snapshot
            if snapshot.phase is RunPhase.DONE:
                return
            while not changed.is_set():
                try:
                    async with asyncio.timeout(KEEP_ALIVE_S):
                        await changed.wait()
                except TimeoutError:
                    yield None
    finally:
        end()
        if not run.is_done:
            manager.stop_run(run)


async def answer_of(run: Run, manager: SessionManager, request: Request) -> MessageView | None:
    """The committed answer, or None if the client disconnected."""

    async def wait() -> MessageView | None:
        message = None
        async with contextlib.aclosing(snapshots(run, manager)) as seen:  # type: ignore[type-var]
            async for snapshot in seen:
                message = snapshot.message if snapshot else None
        return message

    return await until_gone(wait(), request.receive)


async def end_of(run: Run, manager: SessionManager, within_s: float) -> None:
    """Waits for the end of a run that was asked to stop, for so long at most."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s), contextlib.aclosing(snapshots(run, manager)) as seen:  # type: ignore[type-var]
            async for _ in seen:
                pass


async def pieces(
    voice: Voice, run: Run, manager: SessionManager, on_end: Callable[[MessageView | None], None]
) -> AsyncIterator[str]:
    """The whole of a `PieceStream`. `on_end` gets the answer, None if the client disconnected before its end."""
    last, opening = None, chain([""], voice.opening())
    try:
        async with contextlib.aclosing(snapshots(run, manager)) as seen:  # type: ignore[type-var]
            async for snapshot in seen:  # the first one comes at once; from there on the end of `seen` stops the run
                for text in opening:
                    yield text
                if snapshot is None:
                    yield voice.keep_alive
                elif snapshot.message is not None:
                    last = snapshot
                else:
                    for text in voice.news(snapshot, manager.completions.shown(run, snapshot.text)):
                        yield text
        if last is None:
            return
        for text in _ending(voice, run, manager, last):
            yield text
    finally:
        on_end(last.message if last else None)


def _ending(voice: Voice, run: Run, manager: SessionManager, last: RunSnapshot) -> list[str]:
    """The status was already sent: an error becomes a piece that ends the stream."""
    assert last.message is not None
    found: list[str] = []
    try:
        said = manager.completions.message(run, last.message.text)
        found += voice.news(last, (said.thoughts, said.text))
        refuse_failed(last.message)
        return [*found, *voice.ending(last.message, said)]
    except Exception as error:
        return [*found, *voice.failing(problem_of(error, "ending this answer"))]
