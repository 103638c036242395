"""Whose request this is. With a key its holder; without any key in the house, programs of this very machine.

A cookie opens nothing here, so no web page can make a browser ask in its name. What comes through a proxy or through a
share link looks local but is not: the Host it asks for and the headers that proxies add give it away.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.requests import Request

from app.api.problems import Problem
from app.auth import LOCAL_OWNER, Owners
from app.guard import is_loopback
from sessions.keys import KeyStore

FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")


class Callers:
    """Any thread."""

    def __init__(self, keys: KeyStore, owners: Owners) -> None:
        self._keys = keys
        self._owners = owners

    @property
    def has_keys(self) -> bool:
        return self._keys.any_valid()

    def owner_of(self, request: Request) -> str:
        """Raises `Problem` 401 or 403."""
        scheme, _, text = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and text and (key := self._keys.holder(text.strip())):
            return key.owner_id
        if self._keys.any_valid():
            raise Problem(401, "Send a valid API key as 'Authorization: Bearer kw-...'.", "invalid_api_key")
        if self._owners.needs_login:  # a server that wants a password is meant to be reached from elsewhere
            raise Problem(403, "Behind a password the API wants a key. Add one: keepwarm key add NAME.")
        if not _is_local(request):
            raise Problem(
                403, "Without any API key only programs of this machine are answered. Add one: keepwarm key add NAME."
            )
        return LOCAL_OWNER


def _is_local(request: Request) -> bool:
    peer = request.client.host if request.client else ""
    name = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    return is_loopback(peer) and is_loopback(name) and not any(header in request.headers for header in FORWARDED)
