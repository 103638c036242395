"""A real nginx or Caddy with the project's own configuration of it, in front of shards on this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.polling import until
from tests.ports import free_port

DEPLOY = Path(__file__).parents[2] / "deploy"
NGINX = DEPLOY / "nginx" / "keepwarm.conf"
CADDY = DEPLOY / "caddy" / "Caddyfile"
FRONTS = ("nginx", "caddy")


@contextmanager
def front_of(name: str, first_port: int, second_port: int, folder: Path) -> Iterator[str]:
    """The front's address while it runs. The test is skipped where it is not installed."""
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is not installed: apt-get install nginx-light caddy")
    address = f"127.0.0.1:{free_port()}"

    def moved(site: str) -> str:
        return site.replace("127.0.0.1:7861", f"127.0.0.1:{first_port}").replace(
            "127.0.0.1:7862", f"127.0.0.1:{second_port}"
        )

    arguments = {"nginx": _nginx, "caddy": _caddy}[name](moved, address, folder)
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    with (folder / "front.log").open("wb") as log:
        process = subprocess.Popen([program, *arguments], stdout=log, stderr=log, env=environment)
    try:
        until(lambda: process.poll() is not None or _answers(f"http://{address}"), 20)
        assert process.poll() is None, (folder / "front.log").read_text()
        yield f"http://{address}"
    finally:
        process.kill()
        process.wait()


def _nginx(moved: Callable[[str], str], address: str, folder: Path) -> list[str]:
    site = re.sub(r"\n *ssl_certificate.*", "", NGINX.read_text())
    site = moved(site).replace("listen 443 ssl", f"listen {address}")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    folders = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr; events {{}}"
        f" http {{ access_log off; {folders} {site} }}"
    )
    return ["-p", str(folder), "-c", str(folder / "nginx.conf")]


def _caddy(moved: Callable[[str], str], address: str, folder: Path) -> list[str]:
    site = moved(CADDY.read_text()).replace("\nchat.example.org {", f"\nhttp://{address} {{")
    (folder / "Caddyfile").write_text(f"{{\n\tadmin off\n}}\n{site}")
    return ["run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/front").status_code == 204
    except httpx.HTTPError:
        return False
