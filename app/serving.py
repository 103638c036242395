"""uvicorn, with a word when it is ready and a short farewell."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI


class Server(uvicorn.Server):
    """Serves until SIGTERM or SIGINT; open tabs delay the end by `graceful_stop_s` at most."""

    def __init__(self, app: FastAPI, graceful_stop_s: int, on_ready: Callable[[], None] = lambda: None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=graceful_stop_s,
            )
        )
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Like uvicorn's; then says so."""
        await super().startup(sockets)
        if self.started:
            self._on_ready()
