"""Endless waits, crowds, and clients that close their half of the connection, on real sockets."""

from __future__ import annotations

import json
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.http.connection_limits import Limits, address_of, limits_of
from tests.app.conftest import Serve
from tests.app.http.under_load import Probe, Served, at_once, chat, fetch, head, read_all
from tests.app.site import Site
from tests.polling import pause, until

JSON = {"Content-Type": "application/json"}
HALF = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Unfinished: "


@pytest.fixture
def under_load(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    servers: list[Served] = []

    def start(**options: Any) -> Served:
        servers.append(Served(tmp_path / "data", **options))
        return servers[-1]

    yield start
    for one in servers:
        one.close()


def connect(site: Site) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(site.url.rsplit(":", 1)[1])), timeout=20)


def whole_request(**more: Any) -> bytes:
    body = chat(**more)
    return head(Content_Type="application/json", Content_Length=len(body)) + body


def metric(site: Site, reason: str) -> float:
    _, text = fetch(int(site.url.rsplit(":", 1)[1]), "GET", "/metrics")
    found = re.search(rf'connections_ended_total{{reason="{reason}"}} (\S+)', text.decode())
    return float(found[1]) if found else 0.0


@pytest.mark.parametrize("begun", [HALF, head(Content_Type="application/json", Content_Length=900) + b'{"mod', b""])
def test_half_open_requests_keep_no_client_out(under_load: Callable[..., Served], begun: bytes) -> None:
    served = under_load(files=64)
    with Probe(served.port) as probe:
        clients = [served.open() for _ in range(80)]
        for client in clients:
            try:
                client.sendall(begun)
            except ConnectionError:
                continue  # refused already
        pause(1.5)
        for client in clients:
            client.close()
    assert probe.failures == []
    assert probe.answers > 5
    assert fetch(served.port, "POST", "/v1/chat/completions", chat(), JSON)[0] == 200
    assert len(served.lines) == 1  # that some were refused
    assert "connections refused_or_cut=" in served.lines[0]


def test_forty_clients_and_sixty_four_descriptors(under_load: Callable[..., Served]) -> None:
    served = under_load(files=64, token_delay_s=0.005)
    until_s = time.monotonic() + 3

    def talk() -> Counter[int]:
        seen: Counter[int] = Counter()
        while time.monotonic() < until_s:
            try:
                seen[fetch(served.port, "POST", "/v1/chat/completions", chat(max_tokens=4), JSON)[0]] += 1
            except ConnectionError:
                seen[0] += 1
        return seen

    with Probe(served.port) as probe:
        seen = sum(at_once([talk] * 40), Counter[int]())
    assert seen[200] > 0
    assert set(seen) <= {200, 503, 0}
    assert set(probe.failures) <= {"status 503"}  # its connection may be one too many as well
    assert probe.answers > 5
    assert fetch(served.port, "POST", "/v1/chat/completions", chat(), JSON)[0] == 200
    assert served.metric("keepwarm_connections_ended_total") > 0
    assert [line for line in served.lines if "connections refused" not in line] == []
    assert len(served.lines) == 1


def test_a_browser_and_forty_programs_of_one_address_are_all_served(under_load: Callable[..., Served]) -> None:
    served = under_load(files=256, token_delay_s=0.005)
    tabs = [served.open() for _ in range(6)]
    answers = at_once([lambda: fetch(served.port, "POST", "/v1/chat/completions", chat(max_tokens=4), JSON)[0]] * 40)
    assert answers == [200] * 40
    for tab in tabs:
        tab.close()
    assert served.lines == []


def test_headers_that_never_end_are_cut(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.http.connection.HEADER_PATIENCE_S", 0.3)
    site = serve(headless=True)
    with connect(site) as client:
        client.sendall(HALF)
        began = time.monotonic()
        assert read_all(client) == b""
        assert time.monotonic() - began < 5
    assert metric(site, "no_request") == 1


def test_a_body_that_never_ends_is_a_408(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.http.bodies.PATIENCE_S", 0.3)
    site = serve(headless=True)
    for framing in ({"Content_Length": 10_000}, {"Transfer_Encoding": "chunked"}):
        with connect(site) as client:
            client.sendall(head(Content_Type="application/json", **framing) + b"3\r\n{")
            assert read_all(client).startswith(b"HTTP/1.1 408 ")


def test_a_client_that_reads_nothing_is_cut(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.http.connection.WRITE_PATIENCE_S", 0.3)
    site = serve(headless=True)
    with connect(site) as client:
        client.setblocking(False)
        request = head("/v1/openapi.json", "GET")
        deadline = time.monotonic() + 20
        while metric(site, "slow_reader") == 0:
            assert time.monotonic() < deadline
            try:
                client.send(request * 20)
            except BlockingIOError:
                pause(0.05)
            except ConnectionError:
                break
        until(lambda: metric(site, "slow_reader") == 1)


@pytest.mark.parametrize("streams", [False, True])
def test_a_client_that_ends_its_half_gets_its_whole_answer(serve: Serve, streams: bool) -> None:
    site = serve(headless=True, token_delay_s=0.05)
    with connect(site) as client:
        client.sendall(whole_request(text="Hi there", stream=streams))
        client.shutdown(socket.SHUT_WR)
        answer = read_all(client)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    if streams:
        assert b"data: [DONE]" in answer
        events = re.findall(rb"data: (\{.*\})\n", answer)
        text = "".join(json.loads(e)["choices"][0]["delta"].get("content", "") for e in events)
    else:
        text = json.loads(answer.split(b"\r\n\r\n", 1)[1])["choices"][0]["message"]["content"]
    assert text == "You said: Hi there"


def test_pipelined_requests_are_all_answered_before_the_end(site: Site) -> None:
    with connect(site) as client:
        client.sendall(head("/health", "GET") * 3 + whole_request() + head("/health", "GET"))
        client.shutdown(socket.SHUT_WR)
        answer = read_all(client)
    assert answer.count(b"HTTP/1.1 200 OK") == 5
    assert b"You said: Hello" in answer


def test_a_client_that_goes_while_its_answer_waits_stops_it(serve: Serve) -> None:
    site = serve(headless=True, token_delay_s=0.02)
    with connect(site) as client:
        client.sendall(whole_request(text="a long one"))
        until(lambda: site.manager.list_conversations("local"))
    (running,) = site.manager.list_conversations("local")
    until(lambda: site.manager.active_run("local", running.conversation_id) is None, 3.0)


def test_a_refusal_is_read_although_the_request_is_still_being_sent(site: Site) -> None:
    site.store.keys.add("ada")
    with connect(site) as client:
        client.sendall(head(Content_Type="application/json", Content_Length=30 * 2**20))
        pause(0.2)
        for _ in range(64):
            client.sendall(b"x" * 65536)
        client.shutdown(socket.SHUT_WR)
        refused = read_all(client)
    assert refused.startswith(b"HTTP/1.1 401 ")
    assert b"connection: close\r\n" in refused.lower()


def test_a_connection_is_used_again_after_a_short_body_was_refused_unread(site: Site) -> None:
    with connect(site) as client:
        for _ in range(3):
            client.sendall(head(Content_Type="text/plain", Content_Length=5))
            answer = b""
            while b"unsupported_content_type" not in answer:
                answer += client.recv(65536)
            assert answer.startswith(b"HTTP/1.1 415 ")
            client.sendall(b"12345")


def test_the_limits_follow_the_descriptors() -> None:
    """Few descriptors: few threads and connections, and always some left for files. Many: as many as are useful."""
    for files in (64, 128, 256, 300, 1024, 4096, 1_000_000):
        found = limits_of(files, open_files=20)
        assert found.most + 4 * found.threads + 16 + 4 + 20 <= files or found == Limits(4, 3, 3)
        assert 3 <= found.most_of_one_address < found.most
    assert limits_of(1_000_000, 20) == Limits()
    assert limits_of(16, 20) == Limits(4, 3, 3)


def test_one_ipv6_network_is_one_address() -> None:
    assert address_of("2001:db8:1:2:3::4") == address_of("2001:db8:1:2::9") != address_of("2001:db8:1:3::9")
    assert address_of("::ffff:10.0.0.1") == address_of("10.0.0.1") != address_of("10.0.0.2")
    assert address_of("fe80::1%eth0") == address_of("fe80::2")
    assert address_of("") == ""
