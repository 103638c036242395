"""One HTTP connection: uvicorn's, with a limit to every wait.

uvicorn's own connection waits for headers and bodies forever, closes when a client has finished sending, cuts refusals
off while the request is still arriving, and logs a warning for every client that sends nonsense.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import socket
import sys
import termios
from collections.abc import Callable
from typing import Any

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from app.http.bodies import SLOWEST_BYTES_PER_S, SMALL_BODY_BYTES
from app.http.connection_limits import (
    HEADER_PATIENCE_S,
    LINGER_S,
    SLOW_BODY_S,
    SPARE_PATIENCE_S,
    WRITE_PATIENCE_S,
    YOUNG_S,
    YOUNG_SPARE_S,
    Connections,
)
from app.http.feeder import Feeder
from app.http.http_parser import StrictParser
from app.http.response_headers import LOCKED_POLICY, headers_with
from app.paths import HEALTH_PATH
from app.problems import RETRY_BUSY_S, Problem

TCP_CLOSE = 7  # of Linux, in the first byte of `tcp_info`
PROBE_EVERY_S = 0.05
PIECE_BYTES, CHUNKED_PIECE_BYTES = 32 * 1024, 1024  # fed to the parser at once

quiet = logging.getLogger(f"{__name__}.program")  # for faults of this program, not of its clients
quiet.setLevel(logging.ERROR)


class Connection(H11Protocol):
    """One client's connection. The register sets `is_spare` before the first byte arrives."""

    def __init__(
        self, config: Config, state: ServerState, app_state: dict[str, Any], connections: Connections, feeder: Feeder
    ) -> None:
        super().__init__(config, state, app_state)
        self.logger = quiet
        self.conn = StrictParser()
        self.is_spare = False
        self._connections = connections
        self._feeder = feeder
        self._unfed = bytearray()
        self._has_client_ended = False
        self._since_s = self._received_s = self.loop.time()  # start of the wait for a request; of the request itself
        self._received_bytes = 0
        self._stalled_s: float | None = None
        self._closing_s: float | None = None
        self._is_lingering = self._is_cut = self._has_probed = False

    # For the register

    def idle_s(self, now_s: float) -> float | None:
        """How long it has kept a place without using it; None while it may not be closed for another."""
        if self._is_answering():
            age_s = now_s - self._received_s
            is_slow = self._received_bytes < age_s * SLOWEST_BYTES_PER_S / 4
            return age_s if self.cycle.more_body and age_s >= SLOW_BODY_S and is_slow else None
        age_s = now_s - self._since_s
        return age_s if age_s >= (YOUNG_SPARE_S if self.is_spare else YOUNG_S) else None

    def has_unread(self) -> bool:
        """Whether bytes wait in its socket, or nothing could look for them yet. The event loop may be slower than the
        client: a request that has arrived is not idleness, and closing a socket over it would reset the connection."""
        return self.transport is None or _unread_bytes(self._socket()) > 0

    def overdue(self, now_s: float) -> str | None:
        """Why it must be cut, None if it need not be."""
        if self._is_lingering:
            reason, since_s, patience_s = "unread", self._closing_s, LINGER_S
        elif self._closing_s is not None or self._stalled_s is not None:
            reason, since_s, patience_s = "slow_reader", self._closing_s or self._stalled_s, WRITE_PATIENCE_S
        elif self._is_answering():
            return None
        else:
            reason, since_s = "no_request", self._since_s
            patience_s = SPARE_PATIENCE_S if self.is_spare else HEADER_PATIENCE_S
        return reason if since_s is not None and now_s - since_s > patience_s else None

    def cut(self) -> None:
        """Ends it at once."""
        self._is_cut = True
        self._unfed.clear()
        if self.transport is not None:
            self.transport.abort()

    # Called by asyncio

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Lingering(transport, self._close))  # type: ignore[arg-type]
        self.flow = _Flow(self.transport, self._feed_on)
        app: ASGIApp = self.app
        self.app = self._announcing(_probes_alone(app) if self.is_spare else app)
        if self._is_cut:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.remove(self)
        self._feeder.forget(self)
        self._unfed.clear()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        if self._closing_s is not None:
            return  # nothing reads it any more
        self._unset_keepalive_if_required()
        self._unfed += data
        self._feed_on()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client has finished sending, or is gone: both look like the end of data. Returns True to keep the
        connection for the answer."""
        self._has_client_ended = True
        if self._closing_s is not None or not (self._unfed or (self._is_answering() and not self.cycle.more_body)):
            return False
        self._probe()
        return True

    def pause_writing(self) -> None:
        self._stalled_s = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._stalled_s = None
        super().resume_writing()

    # Called by uvicorn

    def on_response_complete(self) -> None:
        self._since_s = self.loop.time()
        if self.is_spare:  # a spare connection serves one request
            self.transport.close()
            return
        super().on_response_complete()
        self._feed_on()
        if self._has_client_ended and not self._unfed and not self._is_answering():
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        self._unfed.clear()
        if self._is_answering():  # this refusal replaces the answer
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
            self._refuse(msg)
        else:  # in the middle of an answer
            self.transport.abort()

    def _refuse(self, sentence: str) -> None:
        """Refuses as uvicorn does, with the headers that every response has."""
        headers = {"Content-Type": "text/plain; charset=utf-8", "Connection": "close", **headers_with(LOCKED_POLICY)}
        lines = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        for event in (
            h11.Response(status_code=400, headers=lines, reason=b"Bad Request"),
            h11.Data(data=sentence.encode("ascii", "replace")),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def shutdown(self) -> None:
        if self._closing_s is not None or self.conn.our_state is h11.ERROR:
            self.transport.abort()
        else:
            super().shutdown()

    # Feeding the parser

    def feed(self) -> bool:
        """Gives the parser one piece of the received bytes. Returns whether there is more, and room for it."""
        if self.flow.read_paused or not self._unfed or self.transport.is_closing():
            return False
        size_bytes = CHUNKED_PIECE_BYTES if self._is_chunked() else PIECE_BYTES
        piece = bytes(self._unfed[:size_bytes])
        del self._unfed[:size_bytes]
        was_answering = self._is_answering()
        self._received_bytes += len(piece)
        try:
            super().data_received(piece)
        except h11.LocalProtocolError:  # a client that keeps sending after it was refused
            self.cut()
        if self._is_answering() and not was_answering:
            self._received_s, self._received_bytes = self.loop.time(), len(piece)
        if self._has_client_ended and not self._unfed and not (self._is_answering() and not self.cycle.more_body):
            self.transport.close()
        return bool(self._unfed) and not self.flow.read_paused

    def _feed_on(self) -> None:
        if len(self._unfed) <= PIECE_BYTES and not self._is_chunked():
            if self.feed():
                self._feeder.add(self)
        elif self._unfed:
            self._feeder.add(self)

    def _is_chunked(self) -> bool:
        return self._is_answering() and self.cycle.more_body and any(n == b"transfer-encoding" for n, _ in self.headers)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    # Closing

    def _announcing(self, app: ASGIApp) -> ASGIApp:
        """Adds `Connection: close` when the answer comes before a long request was received: its rest is not waited
        for. A short rest is waited for, so that a client may use the connection again."""

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_announcing(message: Message) -> None:
                if message["type"] == "http.response.start" and self._has_long_rest():
                    message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
                await send(message)

            await app(scope, receive, send_announcing)

        return answer

    def _has_long_rest(self) -> bool:
        if self.conn.their_state is not h11.SEND_BODY:
            return False
        declared = next((value for name, value in self.headers if name == b"content-length"), None)
        return declared is None or int(declared) > SMALL_BODY_BYTES

    def _close(self, transport: asyncio.Transport) -> None:
        """Closes, but gives a client that is still sending time to read why it was refused. Closing a socket with
        unread bytes resets it, and the answer would be lost."""
        if self._closing_s is not None:
            return
        self._closing_s = self.loop.time()
        self._unset_keepalive_if_required()
        if self.conn.their_state in (h11.SEND_BODY, h11.ERROR) and not self._has_client_ended:
            self._is_lingering = True
            self._unfed.clear()
            with contextlib.suppress(OSError, RuntimeError):
                transport.write_eof()
            transport.resume_reading()
        else:
            transport.close()

    def _probe(self) -> None:
        """Finds out whether a client that ended its data is still there, by sending one byte of urgent data. The byte
        lies outside the stream, so a client waiting for an answer does not see it; a client that has closed its socket
        replies with a reset. Only once: a second urgent byte would turn the first into an ordinary one."""
        if self._has_probed:
            return
        self._has_probed = True
        with contextlib.suppress(OSError), socket.socket(fileno=self._socket().dup().detach()) as own:
            own.send(b"\n", socket.MSG_OOB)
        self._look_for_reset()

    def _look_for_reset(self) -> None:
        if self.transport.is_closing() or not (self._unfed or self._is_answering()):
            return
        if _is_reset(self._socket()):
            self.cut()
        else:
            self.loop.call_later(PROBE_EVERY_S, self._look_for_reset)

    def _socket(self) -> Any:
        return self.transport.get_extra_info("socket")


def _unread_bytes(own: Any) -> int:
    """How many bytes wait in the socket; 0 where it is closed."""
    with contextlib.suppress(OSError, ValueError):
        return int.from_bytes(fcntl.ioctl(own.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder)
    return 0


def _is_reset(own: Any) -> bool:
    """Whether the other side closed its socket. The error is reported once, to the first caller; the state stays."""
    if own.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        return True
    state = getattr(socket, "TCP_INFO", None)
    return state is not None and own.getsockopt(socket.IPPROTO_TCP, state, 1)[0] == TCP_CLOSE


class _Flow(FlowControl):
    """Continues to feed the parser when reading resumes."""

    def __init__(self, transport: asyncio.Transport, on_resume: Callable[[], None]) -> None:
        super().__init__(transport)
        self._on_resume = on_resume

    def resume_reading(self) -> None:
        was_paused = self.read_paused
        super().resume_reading()
        if was_paused:
            self._on_resume()


class _Lingering:
    """A transport with its own `close`."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[asyncio.Transport], None]) -> None:
        self._transport = transport
        self._close = close

    def close(self) -> None:
        self._close(self._transport)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def _probes_alone(app: ASGIApp) -> ASGIApp:
    """Answers only health probes; refuses every other request, because all places are taken."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == HEALTH_PATH:
            await app(scope, receive, send)
        elif scope["type"] == "http":
            problem = Problem(503, "Too many connections are open; try again in a moment.", "busy", None, RETRY_BUSY_S)
            await problem.response(headers_with(LOCKED_POLICY))(scope, receive, send)

    return answer
