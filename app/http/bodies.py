"""Receives request bodies: only after the sender is known, up to a size, within a time, and within a memory limit for
all bodies together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http.fair_share import FairShare
from app.http.json_shape import Shape, ShapeRefused, check_shape
from app.paths import ASK_PATH, LOGIN_PATH, is_api
from app.problems import RETRY_BUSY_S, Problem

BODYLESS_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
KIB, MIB = 1024, 1024 * 1024
MOST_BYTES_IN_FLIGHT = 64 * MIB  # of all bodies being received and parsed
SMALL_BODY_BYTES = 64 * KIB  # not counted: the number of connections limits how many there are
PATIENCE_S = 20.0  # for a whole body, plus one second for every SLOWEST_BYTES_PER_S received
SLOWEST_BYTES_PER_S = 32 * KIB
MEMORY_PATIENCE_S = 10.0  # how long to wait for other bodies to be finished

FORM_BYTES = 8 * KIB  # a password, with what browsers add to it
PLAIN_EVENT_BYTES = 16 * KIB
EVENT_SHAPE = Shape(values=5_000, depth=50)


@dataclass(frozen=True, slots=True)
class BodyLimit:
    """How large a body may be. Without a shape it is not checked as JSON."""

    most_bytes: int
    shape: Shape | None = None


class Bodies:
    """Receives the bodies of one server, on its event loop only."""

    def __init__(self, most_bytes_in_flight: int = MOST_BYTES_IN_FLIGHT) -> None:
        self._bytes = FairShare(most_bytes_in_flight)
        self._turn = FairShare(1)  # parsing two at once would only block the interpreter for the rest for longer

    @property
    def bytes_in_flight(self) -> int:
        """The bytes that large bodies hold or have claimed."""
        return self._bytes.held

    @contextlib.asynccontextmanager
    async def received(self, scope: Scope, receive: Receive, caller: str, most_bytes: int) -> AsyncIterator[bytearray]:
        """Receives the whole body. Its bytes count as in flight until the block ends.

        Raises `Problem` 408, 413 or 503, or `ClientDisconnect`.
        """
        declared_bytes = _declared_bytes(Headers(scope=scope))
        if declared_bytes is not None and declared_bytes > most_bytes:
            raise _too_large(most_bytes)
        body, is_whole = bytearray(), False
        async with contextlib.AsyncExitStack() as stack:
            if declared_bytes is None or declared_bytes <= SMALL_BODY_BYTES:
                is_whole = await _read(receive, body, min(SMALL_BODY_BYTES, most_bytes))
            if not is_whole and len(body) <= most_bytes:
                await self._claim(stack, caller, most_bytes if declared_bytes is None else declared_bytes)
                await _read(receive, body, most_bytes)
            if len(body) > most_bytes:
                raise _too_large(most_bytes)
            yield body

    @contextlib.asynccontextmanager
    async def turn(self, caller: str, size_bytes: int) -> AsyncIterator[None]:
        """The right to parse a body of this size: one large body at a time, with callers in rotation."""
        if size_bytes <= SMALL_BODY_BYTES:
            yield
            return
        async with self._turn.hold(caller, 1):
            yield

    async def _claim(self, stack: contextlib.AsyncExitStack, caller: str, size_bytes: int) -> None:
        try:
            await stack.enter_async_context(self._bytes.hold(caller, size_bytes, MEMORY_PATIENCE_S))
        except TimeoutError as error:
            sentence = "Too many large requests are being read; try again in a moment."
            raise Problem(503, sentence, "busy", retry_after_s=RETRY_BUSY_S) from error


class BodyGate:
    """Receives the bodies of page events and forms before the page's routes see them. The API receives its own once it
    knows the caller: app/api/json_route.py. Runs inside the guard, which has already checked the cookie."""

    def __init__(self, app: ASGIApp, bodies: Bodies, most_message_bytes: int) -> None:
        self._app = app
        self._bodies = bodies
        # A message of only quotes or line feeds takes twice its size as JSON.
        self._message_limit = BodyLimit(2 * most_message_bytes + PLAIN_EVENT_BYTES, EVENT_SHAPE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in BODYLESS_METHODS or is_api(scope["path"]):
            await self._app(scope, receive, send)
            return
        limit = self._limit(scope["path"])
        # By address: behind a password the cookie identifies a browser, but the log-in form has none yet.
        caller = client_of(scope)
        try:
            async with self._bodies.received(scope, receive, caller, limit.most_bytes) as body:
                if limit.shape is not None and body:
                    async with self._bodies.turn(caller, len(body)):
                        await _check(body, limit.shape)
                await self._app(scope, _replayed(body, receive), send)
        except ClientDisconnect:
            return
        except Problem as problem:
            await JSONResponse({"detail": problem.message}, problem.status, problem.headers())(scope, receive, send)

    def _limit(self, path: str) -> BodyLimit:
        if path.rstrip("/") == LOGIN_PATH:
            return BodyLimit(FORM_BYTES)
        if path == ASK_PATH:
            return self._message_limit
        return BodyLimit(PLAIN_EVENT_BYTES)


def client_of(scope: Scope) -> str:
    """The client's address, "" where it is unknown."""
    return scope["client"][0] if scope.get("client") else ""


async def _check(body: bytearray, shape: Shape) -> None:
    try:
        if len(body) > SMALL_BODY_BYTES:
            await run_in_threadpool(check_shape, body, shape)
        else:
            check_shape(body, shape)
    except ShapeRefused as error:
        raise Problem(400, str(error), "invalid_json") from error


async def _read(receive: Receive, body: bytearray, most_bytes: int) -> bool:
    """Appends to `body` until the body ends (True) or is longer than `most_bytes` (False)."""
    loop = asyncio.get_running_loop()
    began, had_bytes = loop.time(), len(body)
    while len(body) <= most_bytes:
        try:
            async with asyncio.timeout_at(began + PATIENCE_S + (len(body) - had_bytes) / SLOWEST_BYTES_PER_S):
                message = await receive()
        except TimeoutError as error:
            raise Problem(408, "The body of this request arrived too slowly.", "too_slow") from error
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return True
    return False


def _replayed(body: bytearray, receive: Receive) -> Receive:
    """A `receive` that returns the body once, and after that what `receive` returns."""
    left: bytearray | None = body

    async def replay() -> Message:
        nonlocal left
        if left is None:
            return await receive()
        message, left = {"type": "http.request", "body": bytes(left), "more_body": False}, None
        return message

    return replay


def _declared_bytes(headers: Headers) -> int | None:
    """The declared length, None for a chunked body. No header at all means no body."""
    if "transfer-encoding" in headers:
        return None
    try:
        return int(headers.get("content-length", "0"))
    except ValueError:
        return None


def _too_large(most_bytes: int) -> Problem:
    size = f"{most_bytes / MIB:.3g} MiB" if most_bytes >= MIB else f"{most_bytes // KIB} KiB"
    return Problem(413, f"This request is larger than {size}.", "request_too_large")
