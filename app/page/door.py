"""What reaches Gradio, and in what shape: one route of our own, whose questions are rebuilt from their checked fields.

None of Gradio's own routes exists for a browser: not its page, its scripts, its proxy and file server, uploads, its
queue, its API, nor any route that a later version may add.
"""

from __future__ import annotations

import json
from typing import Any

from anyio import to_thread
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http.bodies import SMALL_BODY_BYTES, Bodies, client_of
from app.page.asked import BadRequest
from app.page.first.frame import FirstPage
from app.paths import ASK_PATH

NOT_HERE = "There is nothing at this address."
GRADIO_PATH = "/gradio_api/component_server/"
SESSION = "page"  # Gradio keeps something for every session that a request names: all have this one
HERE = b"localhost"  # for the headers from which Gradio would build its own address


class Door:
    """Answers `/` with the page and passes on what is asked at `ASK_PATH`. Must be mounted at the root."""

    def __init__(self, page: FirstPage, gradio: ASGIApp, component_id: int, function: str, bodies: Bodies) -> None:
        self._page = page
        self._gradio = gradio
        self._bodies = bodies
        self._envelope = {"component_id": component_id, "fn_name": function, "session_hash": SESSION}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # As sent: neither path needs an escape, a double slash or a dot segment.
        raw_path = scope.get("raw_path", b"").partition(b"?")[0]
        if scope["type"] == "http" and not scope.get("root_path"):
            if raw_path == b"/" and scope["method"] in ("GET", "HEAD"):
                await self._page.response(Request(scope))(scope, receive, send)
                return
            if raw_path == ASK_PATH.encode() and scope["method"] == "POST":
                await self._ask(scope, receive, send)
                return
        await PlainTextResponse(NOT_HERE, 404)(scope, receive, send)

    async def _ask(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on a question that this page may have asked, and refuses any other with one sentence."""
        headers = Headers(scope=scope)
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            await _refusal("This address accepts only JSON.", 415)(scope, receive, send)
            return
        body = await _whole_body(receive)
        if body is None:
            return
        try:
            if len(body) <= SMALL_BODY_BYTES:
                written = self._rebuilt(body)
            else:
                async with self._bodies.turn(client_of(scope), len(body)):
                    written = await to_thread.run_sync(self._rebuilt, body)
        except BadRequest as error:
            await _refusal(str(error), 400)(scope, receive, send)
            return
        rest: list[Message] = [{"type": "http.request", "body": written, "more_body": False}]

        async def receive_written() -> Message:
            return rest.pop() if rest else await receive()

        await self._gradio(_plain(scope, len(written)), receive_written, send)

    def _rebuilt(self, body: bytes) -> bytes:
        try:
            # As UTF-8, like the check of its shape: `json` itself would also accept UTF-16 and UTF-32.
            question = json.loads(body.decode("utf-8"))
        except (ValueError, RecursionError):
            raise BadRequest from None
        written = json.dumps(self._envelope | {"data": _flat(question)}, ensure_ascii=False)
        # Half a surrogate pair is not a character and cannot be stored or sent.
        return written.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


def _flat(sent: object) -> dict[str, Any]:
    """The named strings, numbers and flags of an object; the page's script sends nothing else. Nested values are
    dropped, and so is "path": Gradio treats an object with a path as a file."""
    if not isinstance(sent, dict):
        raise BadRequest
    return {name: value for name, value in sent.items() if isinstance(value, str | int | float) and name != "path"}


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


def _plain(scope: Scope, length: int) -> Scope:
    """The request as Gradio sees it: at Gradio's path, and with no headers but cookies and those of the body."""
    cookies = [(name, value) for name, value in scope["headers"] if name == b"cookie"]
    own = {b"host": HERE, b"content-type": b"application/json", b"content-length": str(length).encode()}
    path = {"path": GRADIO_PATH, "raw_path": GRADIO_PATH.encode(), "query_string": b""}
    return {**scope, **path, "headers": [*own.items(), *cookies]}


def _refusal(sentence: str, status: int) -> Response:
    return JSONResponse({"error": sentence}, status)
