"""What reaches Gradio, and in what shape: listed routes, headers that it may not repeat, bodies that were checked."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from typing import Any

from anyio import to_thread
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http.response_headers import page_policy
from app.page.asked import BadRequest
from app.page.first.files import KEPT
from app.page.first.frame import Frame
from app.page.gradio_door.index_html import strict_page
from app.page.gradio_door.page_events import GradioEvents
from app.page.gradio_door.page_routes import Route, route_of

NOT_HERE = "There is nothing at this address."
# Gradio builds its own address from these and writes it into the page; app/page/assets/gradio.js corrects it.
REPEATED_HEADERS = (b"host", b"x-forwarded-host", b"x-forwarded-proto", b"x-gradio-server")
HERE = b"localhost"
PARSED_AT_ONCE_BYTES = 64 * 1024  # a longer body is read in a thread


class GradioDoor:
    """Filters requests before Gradio's own application. Must be mounted at the root."""

    def __init__(self, app: ASGIApp, events: GradioEvents, frame: Frame) -> None:
        self._app = app
        self._events = events
        self._frame = frame

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match route_of(scope):
            case Route.PAGE:
                await self._page(scope, receive, send)
            case Route.FILE:
                await self._file(scope, receive, send)
            case Route.EVENT:
                await self._checked(self._events.event, scope, receive, send)
            case Route.QUESTION:
                await self._checked(self._events.question, scope, receive, send)
            case _:
                await PlainTextResponse(NOT_HERE, 404)(scope, receive, send)

    async def _page(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends Gradio's page with a nonce for this response only."""
        nonce = secrets.token_urlsafe(18)
        start: Message = {}
        body = bytearray()

        async def take(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                return
            body.extend(message.get("body", b""))
            if message.get("more_body", False):
                return
            headers = MutableHeaders(raw=list(start["headers"]))
            content = bytes(body)
            if start["status"] == 200:
                page = strict_page(content.decode(), nonce, self._frame)
                content = page.html.encode()
                headers["Content-Security-Policy"] = page_policy(nonce, page.style_hashes)
            headers["Cache-Control"] = "no-store"
            headers["Content-Length"] = str(len(content))
            await send({**start, "headers": headers.raw})
            await send({"type": "http.response.body", "body": content})

        await self._app(_plain(scope), receive, take)

    async def _file(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends one of Gradio's files. The names of its scripts and their style sheets change with their content, so a
        browser keeps them without asking again."""

        async def kept(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                MutableHeaders(raw=message["headers"])["Cache-Control"] = KEPT
            await send(message)

        await self._app(_plain(scope), receive, kept if scope["path"].startswith("/assets/") else send)

    async def _checked(
        self, check: Callable[[Any], dict[str, Any]], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Passes on a body that this page may have sent, rebuilt from its checked fields; refuses any other with one
        sentence."""
        headers = Headers(scope=scope)
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            await _refusal("This address accepts only JSON.", 415)(scope, receive, send)
            return
        body = await _whole_body(receive)
        if body is None:
            return
        try:
            if len(body) <= PARSED_AT_ONCE_BYTES:
                written = _written(check, body)
            else:
                written = await to_thread.run_sync(_written, check, body)
        except BadRequest as error:
            await _refusal(str(error), 400)(scope, receive, send)
            return
        rest: list[Message] = [{"type": "http.request", "body": written, "more_body": False}]

        async def receive_written() -> Message:
            return rest.pop() if rest else await receive()

        length = {b"content-length": str(len(written)).encode()}
        await self._app(_with(scope, {**_known(scope), **length}), receive_written, send)


def _written(check: Callable[[Any], dict[str, Any]], body: bytes) -> bytes:
    try:
        # As UTF-8, like the check of its shape: `json` itself would also accept UTF-16 and UTF-32.
        asked = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        raise BadRequest from None
    written = json.dumps(check(asked), ensure_ascii=False)
    # Half a surrogate pair is not a character and cannot be stored or sent.
    return written.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


async def _whole_body(receive: Receive) -> bytes | None:
    """The whole body, None if the client disconnected."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body.extend(message.get("body", b""))
        if not message.get("more_body", False):
            return bytes(body)


def _plain(scope: Scope) -> Scope:
    """The request without its query and most headers: files and the page depend on nothing but cookies and ETags."""
    kept = [(name, value) for name, value in scope["headers"] if name in (b"cookie", b"if-none-match")]
    return {**scope, "query_string": b"", "headers": [(b"host", HERE), *kept]}


def _known(scope: Scope) -> dict[bytes, bytes]:
    """Neutral values for the headers of this request that Gradio repeats in its responses."""
    return {name: HERE for name, _ in scope["headers"] if name in REPEATED_HEADERS}


def _with(scope: Scope, values: dict[bytes, bytes]) -> Scope:
    """The request with these header values, and without its query."""
    kept = [(name, value) for name, value in scope["headers"] if name not in values]
    return {**scope, "query_string": b"", "headers": [*kept, *values.items()]}


def _refusal(sentence: str, status: int) -> Response:
    return JSONResponse({"error": sentence}, status)
