"""Refusals reach the client, and a request that has arrived is never reset, however late the event loop is."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from app.http.acceptor import REFUSAL, Acceptor
from app.http.connection import Connection
from app.http.connection_limits import SPARE_CONNECTIONS, Connections, Limits
from app.http.feeder import Feeder
from tests.app.http.under_load import head
from tests.coroutines import run_coroutine

REQUEST = head("/v1/chat/completions", Content_Length=4000) + b"x" * 4000


class Full(Connections):
    """Has no place for any connection."""

    def admit(self, *_: object) -> bool:
        return False


class Busy:
    """A connection that waits; whether its request has arrived is `unread`."""

    is_spare = False

    def __init__(self, waited_s: float, unread: bool) -> None:
        self.waited_s, self.unread, self.was_cut = waited_s, unread, False

    def idle_s(self, now_s: float) -> float | None:
        return self.waited_s

    def has_unread(self) -> bool:
        return self.unread

    def overdue(self, now_s: float) -> str | None:
        return None

    def cut(self) -> None:
        self.was_cut = True


class NoDescriptors:
    """A listening socket whose next `accept` finds no descriptor left."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._has_failed = False

    def accept(self) -> Any:
        if not self._has_failed:
            self._has_failed = True
            raise OSError(errno.EMFILE, "Too many open files")
        return self._listener.accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listener, name)


async def no_app(scope: Scope, receive: Receive, send: Send) -> None:
    pass


def new_connection(connections: Connections) -> Connection:
    return Connection(uvicorn.Config(no_app, log_config=None), ServerState(), {}, connections, Feeder())


def with_listener(check: Callable[[socket.socket], Awaitable[None]]) -> None:
    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            await check(listener)

    run_coroutine(run())


def read_to_the_end(client: socket.socket) -> bytes:
    """Raises `ConnectionResetError` where the server threw away what the client had sent."""
    got = b""
    while piece := client.recv(65536):
        got += piece
    return got


@pytest.mark.parametrize("wrap", [lambda listener: listener, NoDescriptors])
def test_a_client_without_a_place_reads_why_and_is_not_reset(wrap: Callable[[socket.socket], Any]) -> None:
    async def check(listener: socket.socket) -> None:
        with socket.create_connection(listener.getsockname(), timeout=10) as client:
            client.sendall(REQUEST)
            connections = Full()
            acceptor = Acceptor(wrap(listener), connections, lambda: new_connection(connections))
            acceptor.start()
            assert await asyncio.to_thread(read_to_the_end, client) == REFUSAL
            acceptor.stop()

    with_listener(check)


def test_bytes_that_wait_are_seen_until_they_are_read() -> None:
    async def check(listener: socket.socket) -> None:
        connections = Connections()
        connection = new_connection(connections)
        assert connection.has_unread()  # nothing could look for its request yet
        acceptor = Acceptor(listener, connections, lambda: connection)
        acceptor.start()
        with socket.create_connection(listener.getsockname(), timeout=10) as client:
            while connection.has_unread():
                await asyncio.sleep(0.01)
            client.sendall(b"GET / HTTP/1.1\r\nX-Unfinished: ")
            assert connection.has_unread()
            await asyncio.sleep(0.1)
            assert not connection.has_unread()
        acceptor.stop()

    with_listener(check)


def test_only_a_connection_that_sent_nothing_is_closed_for_a_new_one() -> None:
    async def check() -> None:
        connections = Connections(Limits(most=2, most_of_one_address=2))
        old, silent = Busy(9.0, unread=True), Busy(5.0, unread=False)
        assert connections.admit(old, "10.0.0.1", 0.0)
        assert connections.admit(silent, "10.0.0.1", 0.0)
        assert connections.admit(Busy(1.0, unread=True), "10.0.0.1", 0.0)
        assert (old.was_cut, silent.was_cut) == (False, True)
        spare = [Busy(1.0, unread=True) for _ in range(SPARE_CONNECTIONS)]
        for one in spare:
            assert connections.admit(one, "10.0.0.1", 0.0)
        assert [one.is_spare for one in spare] == [True] * SPARE_CONNECTIONS
        assert connections.is_crowded(0.0)
        assert not connections.admit(Busy(1.0, unread=True), "10.0.0.1", 0.0)
        spare[0].unread = False
        assert not connections.is_crowded(0.0)

    run_coroutine(check())
