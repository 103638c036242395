"""Feeds the connections' bytes to their parsers in small pieces, in rotation, and returns to the event loop in between.
A one-byte chunk costs as much as a chunk of a thousand bytes: 256 KiB of one-byte chunks blocked the loop for 0.9 s."""

from __future__ import annotations

import asyncio
from typing import Protocol

AT_ONCE_S = 0.005


class Fed(Protocol):
    """A connection with bytes for its parser."""

    def feed(self) -> bool:
        """Parses one piece. Returns whether there is more, and room for it."""


class Feeder:
    """One per server, on its event loop only."""

    def __init__(self) -> None:
        self._hungry: dict[Fed, None] = {}
        self._is_scheduled = False

    def add(self, connection: Fed) -> None:
        """The connection has bytes that its parser has room for."""
        self._hungry[connection] = None
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._serve)

    def forget(self, connection: Fed) -> None:
        self._hungry.pop(connection, None)

    def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + AT_ONCE_S
        self._is_scheduled = False
        while self._hungry and loop.time() < until_s:
            connection = next(iter(self._hungry))
            del self._hungry[connection]
            if connection.feed():
                self._hungry[connection] = None
        for connection in list(self._hungry)[:1]:
            self.add(connection)
