"""Serves the site below a path of a proxy's host, `--root-path`.

The page needs no address but relative ones, and a proxy may strip its prefix or not: what begins with the prefix loses
it here, everything else stays as it is.
"""

from __future__ import annotations

import re

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from app.http.response_headers import LOCKED_POLICY, headers_with

_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_DOTS = re.compile(r"/\.{1,2}(/|$)")


def root_path(text: str) -> str:
    """The prefix without a slash at its end, "" for "/". Raises `ValueError` with a sentence."""
    prefix = text.rstrip("/")
    if prefix and (not _ROOT_PATH.fullmatch(prefix) or _DOTS.search(prefix)):
        raise ValueError(f"the path of a site looks like /chat, of letters, digits and -._~, not {text!r}.")
    return prefix


class SubPath:
    """The outermost ASGI layer below `prefix`: the others see paths without it."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix
        self._raw = prefix.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            raw: bytes = scope.get("raw_path") or scope["path"].encode()
            if scope["type"] == "http" and raw.partition(b"?")[0] == self._raw:
                # Relative addresses in the page begin at its last slash.
                here = RedirectResponse(f"{self._prefix.rpartition('/')[2]}/", 307, headers_with(LOCKED_POLICY))
                await here(scope, receive, send)
                return
            if raw.startswith(self._raw + b"/") and scope["path"].startswith(f"{self._prefix}/"):
                scope = {**scope, "path": scope["path"][len(self._prefix) :], "raw_path": raw[len(self._raw) :]}
        await self._app(scope, receive, send)
