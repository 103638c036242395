"""Which other sites' scripts may call the API from a browser (CORS, https://fetch.spec.whatwg.org/#http-cors-protocol).

A browser sends a key only where a script names it, and cookies count for nothing there. So once every request needs a
key, a site gains nothing by calling: any may. Until then a program on this machine needs no key, and a web page in this
machine's browser would be one: only origins that were named when the server was started may call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response

NO_SITE = "null"  # the origin of files, sandboxed frames and some extensions
PREFLIGHT_AGE_S = 600
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_FIELD_NAMES = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, -]{1,2000}")


class Origins:
    """`needs_key`: whether every request needs a key. It may read the database: not on the event loop."""

    def __init__(self, named: Iterable[str] = (), needs_key: Callable[[], bool] = lambda: False) -> None:
        self._named = frozenset(named)
        self._needs_key = needs_key

    def may_call(self, origins: Iterable[str]) -> bool:
        """Whether scripts of all these origins may call the API."""
        asked = {origin.lower() for origin in origins}
        return bool(asked) and (asked <= self._named or self._needs_key())


def origin_of(text: str) -> str:
    """An origin as browsers send it. Raises `ValueError` with a sentence for anything else."""
    found = text.strip().lower().removesuffix("/")
    if found != NO_SITE and not _ORIGIN.fullmatch(found):
        raise ValueError(
            f"An origin is like https://chat.example.org, http://localhost:3000, chrome-extension://ID or null, not "
            f"{text[:100]!r}. Once a key was made, any origin may call."
        )
    for scheme, port in (("http://", ":80"), ("https://", ":443")):  # browsers leave these out
        if found.startswith(scheme):
            found = found.removesuffix(port)
    return found


def is_preflight(method: str, headers: Headers) -> bool:
    """Whether a browser asks first whether a script may send its request."""
    return method == "OPTIONS" and "access-control-request-method" in headers


def preflight_response(headers: Headers) -> Response:
    """The answer for an origin that may call: with any header, without cookies."""
    names = headers.get("access-control-request-headers", "")
    allowed = {
        "Access-Control-Allow-Methods": "GET, POST, DELETE",
        "Access-Control-Max-Age": str(PREFLIGHT_AGE_S),
    }
    if _FIELD_NAMES.fullmatch(names):
        allowed["Access-Control-Allow-Headers"] = names
    if headers.get("access-control-request-private-network") == "true":
        allowed["Access-Control-Allow-Private-Network"] = "true"
    return Response(status_code=204, headers=allowed)


def let_read(response: MutableHeaders, origin: str) -> None:
    """Lets scripts of that origin read a response."""
    response["Access-Control-Allow-Origin"] = origin
    response["Access-Control-Expose-Headers"] = "Retry-After"
    response.add_vary_header("Origin")
