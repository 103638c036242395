"""Accepts connections from the listening socket. asyncio's own accept loop takes all waiting connections at once, and
logs a traceback for each one that finds no descriptor left: 133,539 in 16 s."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable

from app.http.connection import Connection
from app.http.connection_limits import Connections
from app.http.response_headers import LOCKED_POLICY, headers_with

BACKLOG = 512
AT_ONCE = 16  # waiting connections accepted in one pass, so that the event loop runs in between
CROWDED_S = 0.01
RETRY_S = 0.1
DRAIN_READS, DRAIN_BYTES = 8, 64 * 1024
NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
SENTENCE = b"Too many connections are open; try again in a moment.\n"
_SECURITY_LINES = "".join(f"{name}: {value}\r\n" for name, value in headers_with(LOCKED_POLICY).items()).encode()
REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n%s"
    b"Content-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n\r\n%s"
    % (_SECURITY_LINES, len(SENTENCE), SENTENCE)
)


class Acceptor:
    """Accepts from one listening socket, on the event loop only. Keeps one descriptor in reserve, so that a client can
    be refused when no other is left."""

    def __init__(self, listener: socket.socket, connections: Connections, make: Callable[[], Connection]) -> None:
        self._listener = listener
        self._connections = connections
        self._make = make
        self._loop = asyncio.get_running_loop()
        self._reserve: int | None = os.open(os.devnull, os.O_RDONLY)
        self._tasks: set[asyncio.Task[None]] = set()
        self._has_stopped = False

    def start(self) -> None:
        self._listener.setblocking(False)
        self._listener.listen(BACKLOG)
        self._loop.add_reader(self._listener, self._accept)

    def stop(self) -> None:
        """Accepts no more. The socket stays open."""
        self._has_stopped = True
        self._loop.remove_reader(self._listener)
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            if self._connections.is_crowded(self._loop.time()):
                self._pause(CROWDED_S)
                return
            try:
                client, address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                self._refuse_without_descriptor()
                return
            self._admit(client, str(address[0]) if address else "")

    def _admit(self, client: socket.socket, host: str) -> None:
        client.setblocking(False)
        connection = self._make()
        if self._connections.admit(connection, host, self._loop.time()):
            task = self._loop.create_task(self._serve(client, connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        _refuse(client)

    async def _serve(self, client: socket.socket, connection: Connection) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: connection, client)
        except OSError:  # the client is gone already
            self._connections.remove(connection)
            client.close()

    def _refuse_without_descriptor(self) -> None:
        """Something else took the descriptors that were counted on. Gives up the one in reserve to refuse a client."""
        self._connections.note("no_descriptor")
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None
            with contextlib.suppress(OSError):
                _refuse(self._listener.accept()[0])
        try:
            self._reserve = os.open(os.devnull, os.O_RDONLY)
        except OSError:
            self._pause(RETRY_S)

    def _pause(self, pause_s: float) -> None:
        self._loop.remove_reader(self._listener)
        self._loop.call_later(pause_s, self._resume)

    def _resume(self) -> None:
        if not self._has_stopped:
            self._loop.add_reader(self._listener, self._accept)


def _refuse(client: socket.socket) -> None:
    """Sends a 503 and closes, without waiting. What the client has sent so far is read first: a socket that is closed
    with unread bytes is reset, and the refusal is lost with it."""
    with client, contextlib.suppress(OSError):  # the client may be gone already
        client.setblocking(False)
        client.send(REFUSAL)
        client.shutdown(socket.SHUT_WR)
        for _ in range(DRAIN_READS):
            if not client.recv(DRAIN_BYTES):
                return
