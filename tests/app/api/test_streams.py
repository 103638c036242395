"""A client that goes away, at whichever moment, ends its answer: nothing is written on for nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from app.api.streams import PieceStream, pieces
from app.problems import Problem
from model_runtime.interface.chat import ChatMessage
from sessions.turns.run import Run
from sessions.types import MessageView, RunSnapshot
from tests.app.site import Site
from tests.coroutines import run_coroutine
from tests.polling import until

OWNER = "local"
Message = dict[str, Any]


class Telling:
    """Says how long the answer is."""

    media_type, keep_alive = "text/plain", " "

    def __init__(self, opening: tuple[str, ...]) -> None:
        self._opening = opening

    def opening(self) -> Iterable[str]:
        return self._opening

    def news(self, run: RunSnapshot, shown: tuple[str, str]) -> Iterable[str]:
        return [f"{len(run.text)}\n"]

    def ending(self, message: MessageView, said: ChatMessage) -> Iterable[str]:
        return ["end"]

    def failing(self, problem: Problem) -> Iterable[str]:
        return [problem.message]

    def whole(self, message: MessageView, said: ChatMessage) -> dict[str, Any]:
        return {}


class Leaving:
    """One end of a connection: its client goes away after some messages, at the moment at which the run changes."""

    def __init__(self, run: Run, after: int, is_stuck: bool) -> None:
        self.sent: list[Message] = []
        self._after, self._is_stuck = after, is_stuck
        self._time = asyncio.Event()
        self._change: list[Callable[[], None]] = []
        watch = run.watch
        run.watch = lambda on_change: self._change.append(on_change) or watch(on_change)  # type: ignore[method-assign, func-returns-value]

    async def send(self, message: Message) -> None:
        if len(self.sent) >= self._after:
            self._time.set()
            if self._is_stuck:  # the client reads no more: the connection's buffer is full
                await asyncio.sleep(60)
        self.sent.append(message)

    async def receive(self) -> Message:
        await self._time.wait()
        for change in self._change:
            change()
        return {"type": "http.disconnect"}


@pytest.mark.parametrize("is_stuck", [True, False])
@pytest.mark.parametrize("opening", [(), ("hello",)])
@pytest.mark.parametrize("after", [0, 1, 2, 5])
def test_who_leaves_a_stream_ends_its_answer(
    shared_site: Site, after: int, opening: tuple[str, ...], is_stuck: bool
) -> None:
    manager, shared_site.engine.token_delay_s = shared_site.manager, 0.01
    run = manager.send(OWNER, manager.create_conversation(OWNER).conversation_id, "a long one")
    ends: list[MessageView | None] = []

    async def follow() -> None:
        stream = PieceStream(pieces(Telling(opening), run, manager, ends.append), "text/plain")
        leaving = Leaving(run, after, is_stuck)
        async with asyncio.timeout(10):
            await stream({"type": "http"}, leaving.receive, leaving.send)

    run_coroutine(follow())
    assert ends == [None]
    until(lambda: run.is_done)
    assert len(run.snapshot().text) < 1_000
