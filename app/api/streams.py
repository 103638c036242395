"""Follows runs from the event loop: no thread waits for a run, and a run ends when its client has gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.answers import DONE, Progress, Reply, event, finish_reason, refuse_failed, tool_calls
from app.problems import Problem, problem_of
from sessions.manager import SessionManager
from sessions.turns.run import Run
from sessions.types import MessageView, RunPhase, RunSnapshot

KEEP_ALIVE_S = 15.0  # proxies close a connection that is silent for a minute
KEEP_ALIVE = ": waiting\n\n"

T = TypeVar("T")


class EventStream(Response):
    """Server-sent events. When the client disconnects, the producer is cancelled at once, not at its next event."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def produce() -> None:
            async with contextlib.aclosing(self._events) as events:  # type: ignore[type-var]
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                async for text in events:
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
                    await asyncio.wait_for(changed.wait(), KEEP_ALIVE_S)
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


async def chunks(
    reply: Reply, manager: SessionManager, include_usage: bool, on_end: Callable[[MessageView | None], None]
) -> AsyncIterator[str]:
    """The whole stream. `on_end` gets the answer, None if the client disconnected before its end."""
    run, progress, message = reply.run, Progress(), None
    completions = manager.completions
    try:
        yield reply.chunk({"role": "assistant", "content": ""})
        async with contextlib.aclosing(snapshots(run, manager)) as seen:  # type: ignore[type-var]
            async for snapshot in seen:
                if snapshot is None:
                    yield KEEP_ALIVE
                elif snapshot.message is not None:
                    message = snapshot.message
                else:
                    for delta, logprobs in progress.take(run, *completions.shown(run, snapshot.text)):
                        yield reply.chunk(delta, logprobs=logprobs)
        if message is None:
            return
        try:
            ending = _ending(reply, manager, message, progress, include_usage)
        except Exception as error:  # the status was already sent: report the error as an event and end the stream
            ending = [event(problem_of(error, "ending this answer").body()), DONE]
        for text in ending:
            yield text
    finally:
        on_end(message)


def _ending(
    reply: Reply, manager: SessionManager, message: MessageView, progress: Progress, include_usage: bool
) -> list[str]:
    run = reply.run
    said = manager.completions.message(run, message.text)
    news = [*progress.take(run, said.thoughts, said.text), *progress.rest(run)]
    ending = [reply.chunk(delta, logprobs=logprobs) for delta, logprobs in news]
    try:
        refuse_failed(message)
    except Problem as problem:
        return [*ending, event(problem.body()), DONE]
    if said.tool_calls:
        ending.append(reply.chunk({"tool_calls": tool_calls(said, with_index=True)}))
    if include_usage:
        ending += [reply.chunk({}, finish_reason(run, said)), reply.last_usage(message)]
    else:
        ending.append(reply.last_chunk(finish_reason(run, said), message))
    return [*ending, DONE]
