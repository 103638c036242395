"""The address of a server, as it was typed and as it is used."""

from __future__ import annotations

from urllib.parse import urlsplit

from model_runtime.interface.require import require


def base_address(typed: str) -> str:
    """`http://host:port/prefix` without the `/v1` that OpenAI's clients want at its end. Raises `ValueError`."""
    try:
        parts = urlsplit(typed.strip())
        port = parts.port
    except ValueError as error:
        raise ValueError(f"'{typed}' is not an address: write one like http://127.0.0.1:8080.") from error
    is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
    require(is_address, f"'{typed}' is not an address: write one like http://127.0.0.1:8080.")
    require(port is None or port > 0, f"'{typed}' has no port that can be reached.")
    require(
        parts.username is None and parts.password is None,
        "An engine's address cannot contain a name or a password: put its key into a file (--engine-key-file).",
    )
    require(not (parts.query or parts.fragment), f"'{typed}' cannot be an engine's address: leave out '?' and '#'.")
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path}"
