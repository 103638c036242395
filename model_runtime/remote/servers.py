"""The servers of a remote engine: which one answers, and whether they are well."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Sequence
from hashlib import blake2b

from model_runtime.interface.protocol import RemoteServer
from model_runtime.remote.server import Server
from model_runtime.remote.trouble import EngineTrouble

logger = logging.getLogger(__name__)

CHECK_EVERY_S = 2.0
SAVE_S = 10.0  # for all slots of a server, when Keepwarm ends


class Servers:
    """Only on the loop's thread; `shown` for any thread."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self.all = tuple(servers)
        self._checks: asyncio.Task[None] | None = None

    def choose(self, affinity: str, without: Collection[Server] = ()) -> Server | None:
        """The server for requests of this affinity; None when all are left out. One that is known to be in trouble
        comes last.

        Rendezvous hashing (Thaler and Ravishankar 1998): each server's rank is a hash of it and the affinity, so when
        one goes only its own conversations move, evenly, and they come back with it.
        """
        left = [server for server in self.all if server not in without]
        return min(left, key=lambda server: (not server.is_well, _rank(affinity, server.address)), default=None)

    @property
    def shown(self) -> tuple[RemoteServer, ...]:
        return tuple(server.shown for server in self.all)

    def begin_checks(self) -> None:
        """Asks each server every two seconds whether it is there, and serves what it did."""
        self._checks = asyncio.get_running_loop().create_task(self._check_all())

    async def close(self) -> None:
        if self._checks is not None:
            self._checks.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._checks
        await asyncio.gather(*(_save_slots(server) for server in self.all))
        for server in self.all:
            await server.connection.close()

    async def _check_all(self) -> None:
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            await asyncio.gather(*(self._check(server) for server in self.all))

    async def _check(self, server: Server) -> None:
        was_well = server.is_well
        try:
            trouble = await server.check()
        except Exception:
            logger.exception("engine_not_checked address=%s", server.address)
            return
        if was_well and trouble is not None:
            logger.error("engine_in_trouble address=%s why=%s", server.address, trouble.sentence)
        elif not was_well and server.is_well:
            logger.warning("engine_is_well address=%s", server.address)


async def _save_slots(server: Server) -> None:
    if server.slots is None or not server.is_well:
        return
    try:
        async with asyncio.timeout(SAVE_S):
            await server.slots.save_all()
    except (TimeoutError, EngineTrouble) as error:  # what is not saved is read again
        logger.warning("slots_not_saved address=%s error=%s", server.address, error)


def _rank(affinity: str, address: str) -> bytes:
    return blake2b(f"{affinity}\0{address}".encode(), digest_size=8).digest()
