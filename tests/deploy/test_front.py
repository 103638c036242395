"""The shipped configurations of nginx and Caddy in front of two small servers: what one of them was sent never goes to
the other.

`apt-get install nginx-light caddy`."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.deploy.front import FRONTS, front_of


class Shard(socketserver.ThreadingTCPServer):
    """Counts the requests that it is sent. It answers them, or ends the connection after each. The question which
    models it has does not count: a front may ask it to find a key's server."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.ends = 0, False
        self.port = int(self.server_address[1])
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class Handler(socketserver.StreamRequestHandler):
    server: Shard

    def handle(self) -> None:
        asked = self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        is_message = not asked.startswith(b"GET /v1/models ")
        self.server.requests += is_message
        if not (self.server.ends and is_message):
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")


@pytest.fixture
def shards() -> Iterator[tuple[Shard, Shard]]:
    both = Shard(), Shard()
    yield both
    for one in both:
        one.stop()


@pytest.fixture(params=FRONTS)
def front(request: pytest.FixtureRequest, shards: tuple[Shard, Shard], tmp_path: Path) -> Iterator[str]:
    """Its address."""
    with front_of(request.param, shards[0].port, shards[1].port, tmp_path) as address:
        yield address


def test_a_request_that_a_shard_was_sent_goes_to_no_other(front: str, shards: tuple[Shard, Shard]) -> None:
    for shard in shards:
        shard.ends = True
    with httpx.Client(base_url=front) as client:
        for number in range(6):
            sent = sum(shard.requests for shard in shards)
            told = client.post("/v1/messages", headers={"x-api-key": f"key {number}"})
            assert (told.status_code, "may have been done" in told.json()["error"]["message"]) == (502, True)
            assert client.post("/login").status_code == 502
            assert client.post("/send", headers={"cookie": "keepwarm_shard=a"}).status_code == 502
            assert sum(shard.requests for shard in shards) == sent + 3


def test_a_request_that_could_not_be_sent_goes_to_the_other(front: str, shards: tuple[Shard, Shard]) -> None:
    shards[0].stop()
    with httpx.Client(base_url=front) as client:
        for number in range(6):
            assert client.post("/v1/messages", headers={"x-api-key": f"key {number}"}).text == "ok"
            client.cookies.clear()
            assert client.get("/").text == "ok"
            assert client.get("/", headers={"cookie": "keepwarm_shard=a"}).status_code == 503
    assert shards[1].requests == 12
