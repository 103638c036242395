"""Binds the listening socket, before anything slow happens, so that a port in use is reported at once."""

from __future__ import annotations

import errno
import socket

from sessions.errors import SessionError


class PortError(SessionError):
    """The server cannot listen on the address."""


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet. Raises `PortError` with a sentence."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, ValueError) as error:  # UnicodeError for an impossible name
        raise PortError(f"The address '{host}' is not known on this machine; try --host 127.0.0.1.") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise PortError(_sentence(error, host, port)) from error
    return listener


def url_of(host: str, port: int) -> str:
    """The URL to type into a browser on this machine."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{name}:{port}"


def _sentence(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} is already in use. Stop what uses it, or choose another one with --port."
    if error.errno == errno.EACCES:
        return f"This user may not listen on port {port}; choose one above 1023 with --port."
    return f"Cannot listen on {host}, port {port} ({error.strerror}). Choose another --host or --port."
