"""uvicorn, with a word when it is ready and a short farewell."""

from __future__ import annotations

import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from app.drain import Drain


class Server(uvicorn.Server):
    """Serves until SIGTERM or SIGINT, and goes on while `drain` lets answers finish; a second signal ends that. Open
    tabs delay the end by `graceful_stop_s` at most."""

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
                proxy_headers=False,  # believed where they come from: app/visitors.py
                server_header=False,
                timeout_graceful_shutdown=graceful_stop_s,
            )
        )
        self._on_ready = on_ready
        self._drain = drain

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Like uvicorn's; then says so."""
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came."""
        if self._drain is not None and not self._drain.is_on:
            self._drain.begin()
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second; True ends the server."""
        if self._drain is not None and self._drain.is_over():
            self.should_exit = True
        return await super().on_tick(counter)
