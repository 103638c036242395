"""A real nginx with the project's own configuration of it, in front of shards on this machine."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.polling import until

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "nginx" / "keepwarm.conf"
NGINX = shutil.which("nginx")


@contextmanager
def front_of(first_port: int, second_port: int, folder: Path) -> Iterator[str]:
    """nginx's address while it runs. The test is skipped where nginx is not installed."""
    if NGINX is None:
        pytest.skip("nginx is not installed: apt-get install nginx-light")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    site = re.sub(r"\n *ssl_certificate.*", "", CONFIGURATION.read_text())
    site = site.replace("listen 443 ssl", f"listen 127.0.0.1:{port}")
    site = site.replace("127.0.0.1:7861", f"127.0.0.1:{first_port}").replace(
        "127.0.0.1:7862", f"127.0.0.1:{second_port}"
    )
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    folders = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log; events {{}}"
        f" http {{ access_log off; {folders} {site} }}"
    )
    process = subprocess.Popen([NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")])
    try:
        address = f"http://127.0.0.1:{port}"
        until(lambda: process.poll() is not None or _answers(address), 20)
        assert process.poll() is None, (folder / "error.log").read_text()
        yield address
    finally:
        process.kill()
        process.wait()


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/front").status_code == 204
    except httpx.HTTPError:
        return False
