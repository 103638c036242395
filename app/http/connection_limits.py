"""Limits how many connections may be open, from where, and how long each may keep the server waiting."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Protocol

log = logging.getLogger(__name__)

MOST_CONNECTIONS = 1000
FEWEST_CONNECTIONS = 4
ADDRESS_SHARE = 0.75  # of all connections, for one address: also for a proxy's, and for this machine's
SPARE_CONNECTIONS = 4  # beyond the limit; only health probes are answered on them

MOST_THREADS = 40
FEWEST_THREADS = 3
# SQLite's database and log: every thread has its own connection, and the page's threads come on top.
FILES_A_THREAD = 4
OTHER_FILES = 16  # segments, pages, files that libraries open briefly

HEADER_PATIENCE_S = 10.0  # from the first byte (or the connection) to the end of the headers
SPARE_PATIENCE_S = 2.0
YOUNG_S = 0.05  # a younger connection is never closed for a new one
YOUNG_SPARE_S = 0.01  # shorter: its request was sent while it waited to be accepted
SLOW_BODY_S = 2.0  # after this a connection with a slow body may be closed for a new one
WRITE_PATIENCE_S = 60.0  # for a client that does not read what it asked for
LINGER_S = 2.0  # for a client to read a refusal that came before its request was sent
LOG_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How many connections may be open, and how many threads work for them."""

    most: int = MOST_CONNECTIONS
    most_of_one_address: int = int(MOST_CONNECTIONS * ADDRESS_SHARE)
    threads: int = MOST_THREADS


def limits_of(files: int, open_files: int) -> Limits:
    """The limits that `files` descriptors allow, of which `open_files` are permanently taken."""
    free = files - open_files - OTHER_FILES - SPARE_CONNECTIONS
    threads = max(FEWEST_THREADS, min(MOST_THREADS, free // (3 * FILES_A_THREAD)))  # a third of what is free
    most = max(FEWEST_CONNECTIONS, min(MOST_CONNECTIONS, free - threads * FILES_A_THREAD))
    return Limits(most, max(FEWEST_CONNECTIONS - 1, int(most * ADDRESS_SHARE)), threads)


def own_limits() -> Limits:
    """The limits of this process as it is now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = MOST_CONNECTIONS * 10 if soft == resource.RLIM_INFINITY else soft
    return limits_of(files, _open_files())


def _open_files() -> int:
    for directory in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            return len(os.listdir(directory))
    return 64


def address_of(host: str) -> str:
    """What counts as one address: for IPv6 the network that one household gets."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if not isinstance(address, IPv6Address):
        return host
    return str(address.ipv4_mapped) if address.ipv4_mapped else f"{int(address) >> 64:x}::/64"


@dataclass(frozen=True, slots=True)
class ConnectionCounts:
    """The register at one moment. `ended`: refused or cut connections, by reason."""

    open: int
    most: int
    ended: Mapping[str, int]


class Registered(Protocol):
    """What the register asks of a connection. `is_spare` is set by the register before the first byte."""

    is_spare: bool

    def idle_s(self, now_s: float) -> float | None:
        """How long it has kept a place without using it; None while it may not be closed for another."""

    def has_unread(self) -> bool:
        """Whether something has arrived on it that the event loop has not read yet."""

    def overdue(self, now_s: float) -> str | None:
        """Why it must be cut, None if it need not."""

    def cut(self) -> None:
        """Ends it at once."""


class Connections:
    """The register of all open connections. On the event loop only, except `counts`."""

    def __init__(self, limits: Limits = Limits()) -> None:
        self.limits = limits
        self._open: dict[Registered, str] = {}
        self._of_address: Counter[str] = Counter()
        self._spare: set[Registered] = set()
        self._ended: Counter[str] = Counter()
        self._unreported = 0
        self._reported_at = -LOG_EVERY_S

    def counts(self) -> ConnectionCounts:
        return ConnectionCounts(len(self._open) + len(self._spare), self.limits.most, dict(self._ended))

    def admit(self, connection: Registered, host: str, now_s: float) -> bool:
        """Whether a new connection may stay. When all places are taken, an idle connection is closed for it; if none is
        idle, it becomes one of the few spare connections, on which only health probes are answered."""
        address = address_of(host)
        if self._of_address[address] >= self.limits.most_of_one_address:
            has_room = self._close_idle(address, now_s)
        elif len(self._open) >= self.limits.most:
            has_room = self._close_idle(self._of_address.most_common(1)[0][0], now_s) or self._close_idle(None, now_s)
        else:
            has_room = True
        if has_room:
            self._open[connection] = address
            self._of_address[address] += 1
            return True
        self.note("full")
        if len(self._spare) >= SPARE_CONNECTIONS and not self._end(self._longest_waiting(self._spare, now_s)):
            return False
        connection.is_spare = True
        self._spare.add(connection)
        return True

    def is_crowded(self, now_s: float) -> bool:
        """Whether new connections should wait for a moment in the listening socket, where their requests wait too."""
        return len(self._spare) >= SPARE_CONNECTIONS and self._longest_waiting(self._spare, now_s) is None

    def remove(self, connection: Registered) -> None:
        """The connection has ended. May be called twice."""
        self._spare.discard(connection)
        address = self._open.pop(connection, None)
        if address is not None:
            self._of_address[address] -= 1
            if not self._of_address[address]:
                del self._of_address[address]

    def note(self, reason: str) -> None:
        """Counts a connection that was refused or cut. Logs a summary once a minute."""
        self._ended[reason] += 1
        self._unreported += 1
        now_s = asyncio.get_running_loop().time()
        if now_s - self._reported_at >= LOG_EVERY_S:
            log.warning(
                "connections refused_or_cut=%d open=%d limit=%d reason=%s",
                *(self._unreported, len(self._open), self.limits.most, reason),
            )
            self._unreported, self._reported_at = 0, now_s

    def sweep(self, now_s: float) -> None:
        """Cuts connections that kept the server waiting for too long. Called about twice a second."""
        for connection in [*self._open, *self._spare]:
            if reason := connection.overdue(now_s):
                self.note(reason)
                connection.cut()

    def _close_idle(self, address: str | None, now_s: float) -> bool:
        """Closes the connection, of one address or of any, that has kept the server waiting longest."""
        own = (connection for connection, its in self._open.items() if address is None or its == address)
        return self._end(self._longest_waiting(own, now_s))

    def _longest_waiting(self, connections: Iterable[Registered], now_s: float) -> Registered | None:
        waiting = [(waited_s, c) for c in connections if (waited_s := c.idle_s(now_s)) is not None]
        waiting.sort(key=lambda pair: pair[0], reverse=True)
        return next((connection for _, connection in waiting if not connection.has_unread()), None)

    def _end(self, connection: Registered | None) -> bool:
        if connection is None:
            return False
        self.note("put_out")
        self.remove(connection)
        connection.cut()
        return True
