"""The public link: Gradio's tunnel to the running server, or the reason why the chat is local only."""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)


class Share:
    """State of the public link. `sentence()` is "" when none was requested; any thread may call it."""

    def __init__(self) -> None:
        self._sentence = ""
        self._host = ""

    def open(self, local_host: str, local_port: int, say: Callable[[str], None]) -> None:
        """Starts a thread that opens the tunnel and reports the outcome with `say`. Returns at once."""
        self._sentence = "Opening a public link."
        threading.Thread(
            target=self._open, args=(local_host, local_port, say), name="keepwarm-share", daemon=True
        ).start()

    def sentence(self) -> str:
        """The link, or why there is none, as a sentence for a person."""
        return self._sentence

    def host(self) -> str:
        """The host name of the public link, "" while there is none."""
        return self._host

    def close(self) -> None:
        """Ends the tunnel."""
        if not self._host:
            return
        from gradio.tunneling import CURRENT_TUNNELS

        for tunnel in CURRENT_TUNNELS:
            tunnel.kill()

    def _open(self, local_host: str, local_port: int, say: Callable[[str], None]) -> None:
        try:
            from gradio.networking import setup_tunnel

            check_tunnel_program()
            url = setup_tunnel(local_host, local_port, secrets.token_urlsafe(32), None, None)
        except TunnelRefused as error:
            log.warning("share_refused")
            self._sentence = f"Local only: {error}"
        except Exception as error:
            log.info("share_failed error=%s", type(error).__name__)
            self._sentence = (
                "Local only: the public link could not be opened, because Gradio's share server "
                f"did not answer ({_reason(error)})."
            )
        else:
            self._host = url.split("://", 1)[-1].split("/", 1)[0]
            self._sentence = f"Public link: {url}"
        say(self._sentence)


class TunnelRefused(Exception):
    """The tunnel's program could not be shown to be the one that Gradio published, and was not run."""


def check_tunnel_program() -> None:
    """Downloads the program of Gradio's tunnel if it is missing, and compares the file with its checksum.

    Gradio on its own leaves a download with a wrong checksum in place, and runs it at the next start without checking
    again. Raises `TunnelRefused`, and what a failed download raises.
    """
    from gradio import tunneling
    from gradio.exceptions import ChecksumMismatchError

    path = Path(tunneling.BINARY_PATH)
    expected = tunneling.CHECKSUMS.get(tunneling.BINARY_URL)
    if expected is None:
        raise TunnelRefused("Gradio publishes no checksum of the tunnel's program for this kind of machine.")
    if not path.exists():
        try:
            tunneling.Tunnel.download_binary()
        except ChecksumMismatchError:
            path.unlink(missing_ok=True)
            raise TunnelRefused(
                "the tunnel's program was downloaded, but its checksum is not the one that Gradio published. "
                "It was not run and has been removed. Try again on another network."
            ) from None
    if _sha256(path) != expected:
        raise TunnelRefused(
            f"the checksum of the tunnel's program at {path} is not the one that Gradio published. "
            "It was not run. Remove that file and start again: it will be downloaded again."
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: Exception) -> str:
    cause = error.__cause__ or error
    text = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
    return text[:120].rstrip(".")
