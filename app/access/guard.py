"""Decides which requests reach the site at all. Plain ASGI, so that streamed answers pass through untouched."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.access.auth import Owners
from app.access.origins import Origins, is_preflight, let_read, preflight_response
from app.access.visitors import NO_PROXIES, Visitors, is_loopback
from app.error_shapes import error_response
from app.http.response_headers import LOCKED_POLICY, LOGIN_POLICY, headers_with
from app.paths import ASSETS_PATH, HEALTH_PATH, LOGIN_PATH, LOGOUT_PATH, METRICS_PATH, beside, is_api
from app.problems import Problem

LARGEST_BODY_BYTES = 32 * 1024 * 1024
TOO_LARGE = "This request is larger than 32 MiB."
NAME_IT = "Until a key was made, start the server with --allow-origin for those that may call."
FROM_ANOTHER_SITE = "Requests from other sites are refused."
# A host as RFC 3986 writes it, with its port: a name or an IPv4 address, or an IPv6 address in brackets.
_HOST = re.compile(r"(?:[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")


class Guard:
    """Checks Host, Origin and the browser's own statement of the request's origin, then the login. Adds the security
    headers to every response, refusals included."""

    def __init__(
        self,
        app: ASGIApp,
        owners: Owners,
        bind_host: str,
        share_host: Callable[[], str],
        visitors: Visitors = NO_PROXIES,
        origins: Origins | None = None,
    ) -> None:
        self._app = app
        self._origins = origins or Origins()
        self._visitors = visitors
        self._owners = owners
        self._bind_host = bind_host
        self._share_host = share_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        policy = LOGIN_POLICY if scope["path"] in (LOGIN_PATH, LOGOUT_PATH) else LOCKED_POLICY
        read_bytes = 0

        async def receive_limited() -> Message:
            nonlocal read_bytes
            message = await receive()
            read_bytes += len(message.get("body", b""))
            if read_bytes > LARGEST_BODY_BYTES:  # a body that did not declare its length
                raise HTTPException(413, TOO_LARGE)
            return message

        foreign = self._foreign_caller(scope, headers)
        may_call = bool(foreign) and await run_in_threadpool(self._origins.may_call, foreign)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                response = MutableHeaders(scope=message)
                if may_call:
                    let_read(response, foreign[0])
                for name, value in headers_with(policy).items():
                    response.setdefault(name, value)  # the chat page sets its own policy
            await send(message)

        refusal = self._refuse(scope, headers, may_call)
        if refusal is None and may_call and is_preflight(scope["method"], headers):
            refusal = preflight_response(headers)
        if refusal is not None:
            await refusal(scope, receive, send_with_headers)
            return
        await self._app(scope, receive_limited, send_with_headers)

    def _foreign_caller(self, scope: Scope, headers: Headers) -> list[str]:
        """The origins of a request to the API from another site's page; [] for any other request."""
        origins, host = headers.getlist("origin"), headers.get("host", "")
        is_own = all(self._is_own_origin(origin, host) for origin in origins)
        return [] if is_own or not is_api(scope["path"]) or scope["type"] != "http" else origins

    def _refuse(self, scope: Scope, headers: Headers, may_call: bool) -> Response | None:
        host = headers.get("host", "")
        path = scope["path"]
        refuse = partial(_problem, path) if is_api(path) else PlainTextResponse
        is_nameless = "host" not in headers and scope.get("http_version") == "1.0"  # as old probes request /health
        if not (_HOST.fullmatch(host) or (is_nameless and _is_for_programs(scope["path"]))):
            return refuse("This request does not name a valid host.", 400)
        if not (self._owners.needs_login or _is_for_programs(scope["path"]) or self._is_own_name(host)):
            # A foreign name that resolves to this machine (DNS rebinding) must not reach a chat without a password.
            return refuse(f"This chat does not answer to the name {host[:200]!r}.", 400)
        if not (self._owners.needs_login or _is_for_programs(scope["path"])) and (
            why := self._visitors.of(scope).why_not_local
        ):
            return refuse(
                f"Without a password this chat answers only this machine, and this request is not from it: {why}. "
                "To let others in, start the server with --password-file.",
                403,
            )
        if not may_call and not all(self._is_own_origin(origin, host) for origin in headers.getlist("origin")):
            return refuse(_why_foreign(scope), 403)
        if not may_call and not _is_from_here(scope, headers):
            return refuse(_why_foreign(scope), 403)
        if _body_bytes(headers) > LARGEST_BODY_BYTES:
            return refuse(TOO_LARGE, 413)
        if _is_public(scope["path"]) or self._owners.owner_of(cookies_of(headers)) is not None:
            return None
        if scope.get("method") == "GET" and "text/html" in headers.get("accept", ""):
            sent = scope.get("raw_path", b"/").decode("ascii", "replace")
            return RedirectResponse(beside(sent.partition("?")[0], LOGIN_PATH), 303)
        return JSONResponse({"detail": "Please log in."}, 401)

    def _is_own_name(self, host: str) -> bool:
        name = urlsplit(f"//{host}").hostname or ""
        return name in ("localhost", self._bind_host) or is_loopback(name)

    def _is_own_origin(self, origin: str, host: str) -> bool:
        return _netloc(origin) in {host, self._share_host()} - {""}


def _why_foreign(scope: Scope) -> str:
    return f"{FROM_ANOTHER_SITE} {NAME_IT}" if is_api(scope["path"]) else FROM_ANOTHER_SITE


def _netloc(origin: str) -> str:
    """Host and port of an origin, "" where it is not a URL."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def cookies_of(headers: Headers) -> dict[str, str]:
    """The request's cookies. Only spaces and tabs are stripped from a name: a cookie that another host set under a name
    with some other character in front must not pass for one that begins with `__Host-`."""
    parts = (part.strip(" \t").partition("=") for part in ";".join(headers.getlist("cookie")).split(";"))
    return {name: value.strip('"') for name, sign, value in parts if sign}


def _is_from_here(scope: Scope, headers: Headers) -> bool:
    """Whether the browser says that no other site made the request.

    Another site, or another port of this machine, may link to the page, in a tab of its own; it may not fetch, embed or
    frame anything. A request without the browser's statement is judged by Host and Origin alone.
    """
    if headers.get("sec-fetch-site", "none") in ("same-origin", "none"):
        return True
    return (
        scope.get("method") in ("GET", "HEAD")
        and scope["path"] in ("/", LOGIN_PATH)
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
    )


def _is_public(path: str) -> bool:
    return path == LOGIN_PATH or path.startswith(f"{ASSETS_PATH}/") or _is_for_programs(path)


def _is_for_programs(path: str) -> bool:
    """Whether the route checks its callers itself. A probe may request health under any host name."""
    return path in (HEALTH_PATH, METRICS_PATH) or is_api(path)


def _problem(path: str, sentence: str, status: int) -> Response:
    """A refusal in the API's shape."""
    return error_response(Problem(status, sentence), path)


def _body_bytes(headers: Headers) -> int:
    try:
        return int(headers.get("content-length", "0"))
    except ValueError:
        return LARGEST_BODY_BYTES + 1
