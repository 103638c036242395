"""Requests that no library would send: target and headers are sent exactly as given."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Answer:
    """A response: status, header lines in lower case, and text."""

    status: int
    headers: dict[str, str]
    text: str


def ask(url: str, request_line: str, headers: dict[str, str] | None = None, body: bytes = b"") -> Answer:
    """One request to the server at `url` on its own connection."""
    address = urlsplit(url)
    lines = {"Host": address.netloc, "Connection": "close", **(headers or {})}
    if body:
        lines["Content-Length"] = str(len(body))
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    with socket.create_connection((address.hostname or "", address.port or 80), timeout=20) as connection:
        connection.sendall(f"{request_line} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    start, _, text = received.partition(b"\r\n\r\n")
    status, *rest = start.decode("latin-1").split("\r\n")
    pairs = (line.partition(": ") for line in rest)
    return Answer(
        int(status.split()[1]), {name.lower(): value for name, _, value in pairs}, text.decode("utf-8", "replace")
    )
