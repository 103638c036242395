"""The owner of an API request: the holder of its key, or, while no key was ever made, any program on this machine.

Cookies are ignored, so no web page can make a browser send requests in its user's name. Once a key has been made, every
request needs one, even after all keys are revoked: revoking a key must not let more people in.
"""

from __future__ import annotations

from starlette.requests import Request

from app.access.auth import LOCAL_OWNER, Owners
from app.access.visitors import NO_PROXIES, Visitors
from app.problems import Problem
from sessions.store.tables.keys import KeyStore

ADD_ONE = "Add one: keepwarm key add NAME."


class Callers:
    """Decides whether an API request is answered. Any thread. `owner_of` reads headers and peer, never the body."""

    def __init__(
        self, keys: KeyStore, owners: Owners, visitors: Visitors = NO_PROXIES, require_key: bool = False
    ) -> None:
        self._keys = keys
        self._owners = owners
        self._require_key = require_key
        self.visitors = visitors

    @property
    def has_keys(self) -> bool:
        """Whether there is a valid key now."""
        return self._keys.any_valid()

    @property
    def needs_key(self) -> bool:
        """Whether every request needs a key."""
        return self._require_key or self._keys.ever_made()

    def owner_of(self, request: Request) -> str:
        """The owner of the request. Raises `Problem` 401 or 403."""
        scheme, _, text = request.headers.get("authorization", "").partition(" ")
        for sent in (text if scheme.lower() == "bearer" else "", request.headers.get("x-api-key", "")):
            if sent.strip() and (key := self._keys.holder(sent.strip())):
                return key.owner_id
        if self._keys.any_valid():
            sentence = "Send a valid API key as 'Authorization: Bearer kw-...' or 'x-api-key: kw-...'."
            raise Problem(401, sentence, "invalid_api_key")
        if self.needs_key:
            lack = "all keys of this server were revoked" if self._keys.ever_made() else "this server has no key yet"
            raise Problem(401, f"Every request needs an API key, and {lack}. {ADD_ONE}", "invalid_api_key")
        if self._owners.needs_login:  # a server with a password is meant to be reached from other machines
            raise Problem(403, f"On a server with a password the API needs a key. {ADD_ONE}")
        if why := self.visitors.of(request.scope).why_not_local:
            raise Problem(403, f"Without any API key only programs on this machine are answered, and {why}. {ADD_ONE}")
        return LOCAL_OWNER
