"""uvicorn with a limit to every wait, a call when it is ready, and a quick shutdown."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import FrameType

import anyio
import uvicorn
from fastapi import FastAPI

from app.http.acceptor import Acceptor
from app.http.connection import Connection
from app.http.connection_limits import Connections, own_limits
from app.http.feeder import Feeder
from app.server.drain import Drain

SWEEP_TICKS = 5  # of ten a second


class Server(uvicorn.Server):
    """Serves until SIGTERM or SIGINT, then continues while `drain` lets answers finish; a second signal ends that. Open
    tabs delay the end by at most `graceful_stop_s`."""

    def __init__(
        self,
        app: FastAPI,
        graceful_stop_s: int,
        on_ready: Callable[[], None] = lambda: None,
        drain: Drain | None = None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                proxy_headers=False,  # app/access/visitors.py decides which proxies to trust
                server_header=False,
                timeout_graceful_shutdown=graceful_stop_s,
                http="h11",
                ws="none",  # the page uses none
            )
        )
        self._on_ready = on_ready
        self._drain = drain
        self._connections: Connections = app.state.connections
        self._acceptors: list[Acceptor] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Like uvicorn's, with our own acceptors; then calls `on_ready`."""
        await super().startup([])
        if not self.started:
            return
        self._connections.limits = limits = own_limits()
        anyio.to_thread.current_default_thread_limiter().total_tokens = limits.threads
        feeder = Feeder()

        def make() -> Connection:
            return Connection(self.config, self.server_state, self.lifespan.state, self._connections, feeder)

        for listener in sockets or []:
            self._acceptors.append(Acceptor(listener, self._connections, make))
            self._acceptors[-1].start()
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Like uvicorn's, but first stops accepting connections."""
        for acceptor in self._acceptors:
            acceptor.stop()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the drain; the second ends the server at once."""
        if self._drain is not None and not self._drain.is_on:
            self._drain.begin()
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second; True ends the server."""
        if self._drain is not None and self._drain.is_over():
            self.should_exit = True
        if counter % SWEEP_TICKS == 0:
            self._connections.sweep(asyncio.get_running_loop().time())
        return await super().on_tick(counter)
