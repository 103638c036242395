"""Takes connections off the listening socket. asyncio's own loop takes all that wait at once, and logs a traceback for
each that finds no descriptor left: 133,539 in 16 s."""

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
AT_ONCE = 16  # of those that wait, so that the loop turns between them
CROWDED_S = 0.01
RETRY_S = 0.1
NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
SENTENCE = b"Too many connections are open; try again in a moment.\n"
_SECURITY_LINES = "".join(f"{name}: {value}\r\n" for name, value in headers_with(LOCKED_POLICY).items()).encode()
REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n%s"
    b"Content-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n\r\n%s"
    % (_SECURITY_LINES, len(SENTENCE), SENTENCE)
)


class Acceptor:
    """One listening socket, on the event loop alone. A descriptor is kept in hand, so that a client can be refused when
    there is none left."""

    def __init__(self, listener: socket.socket, connections: Connections, make: Callable[[], Connection]) -> None:
        self._listener = listener
        self._connections = connections
        self._make = make
        self._loop = asyncio.get_running_loop()
        self._in_hand: int | None = os.open(os.devnull, os.O_RDONLY)
        self._tasks: set[asyncio.Task[None]] = set()
        self._has_stopped = False

    def start(self) -> None:
        self._listener.setblocking(False)
        self._listener.listen(BACKLOG)
        self._loop.add_reader(self._listener, self._accept)

    def stop(self) -> None:
        """Takes no more. The socket stays open."""
        self._has_stopped = True
        self._loop.remove_reader(self._listener)
        if self._in_hand is not None:
            os.close(self._in_hand)
            self._in_hand = None

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
        with client, contextlib.suppress(OSError):  # it may be gone already
            client.send(REFUSAL)
            client.shutdown(socket.SHUT_WR)

    async def _serve(self, client: socket.socket, connection: Connection) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: connection, client)
        except OSError:  # it is gone already
            self._connections.remove(connection)
            client.close()

    def _refuse_without_descriptor(self) -> None:
        """Something else has taken the descriptors that were counted on. The one in hand lets the client be closed."""
        self._connections.note("no_descriptor")
        if self._in_hand is not None:
            os.close(self._in_hand)
            self._in_hand = None
            with contextlib.suppress(OSError):
                self._listener.accept()[0].close()
        try:
            self._in_hand = os.open(os.devnull, os.O_RDONLY)
        except OSError:
            self._pause(RETRY_S)

    def _pause(self, pause_s: float) -> None:
        self._loop.remove_reader(self._listener)
        self._loop.call_later(pause_s, self._resume)

    def _resume(self) -> None:
        if not self._has_stopped:
            self._loop.add_reader(self._listener, self._accept)
