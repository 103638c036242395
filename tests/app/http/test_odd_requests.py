"""Ambiguous and meaningless requests: an answer or a closed connection, never a traceback or an endless wait."""

from __future__ import annotations

import json
import logging
import random
import re
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.app.http.test_connections import connect
from tests.app.http.under_load import chat, fetch, read_all
from tests.app.site import Site

HOST = b"Host: 127.0.0.1\r\n"
BODY = chat()
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
JSON = b"Content-Type: application/json\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST + JSON

ODD: dict[str, tuple[bytes, bytes]] = {
    "absolute target": (b"GET http://127.0.0.1/health HTTP/1.1\r\n" + HOST + b"\r\n", b"200"),
    "absolute target without a path": (b"GET http://127.0.0.1 HTTP/1.1\r\n" + HOST + b"\r\n", b"200"),
    "absolute target of another host": (b"GET http://leak.invalid/health HTTP/1.1\r\n" + HOST + b"\r\n", b"400"),
    "another scheme": (b"GET ftp://127.0.0.1/health HTTP/1.1\r\n" + HOST + b"\r\n", b"400"),
    "a target without a slash": (b"GET health HTTP/1.1\r\n" + HOST + b"\r\n", b"400"),
    "a tunnel": (b"CONNECT leak.invalid:443 HTTP/1.1\r\n" + HOST + b"\r\n", b"400"),
    "an asterisk": (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", b"404"),
    "two hosts": (b"GET /health HTTP/1.1\r\n" + HOST + b"Host: leak.invalid\r\n\r\n", b"400"),
    "no host": (b"GET /health HTTP/1.1\r\n\r\n", b"400"),
    "HTTP/1.0": (b"GET /health HTTP/1.0\r\n\r\n", b"200"),
    "HTTP/1.0 with a body": (POST.replace(b"1.1", b"1.0") + LENGTH + b"\r\n" + BODY, b"403"),
    "HTTP/3.0": (b"GET /health HTTP/3.0\r\n" + HOST + b"\r\n", b"400"),
    "HTTP/2 by prior knowledge": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 9, b"400"),
    "TLS": (bytes.fromhex("16030100a5010000a10303") + b"\x42" * 160, b"400"),
    "a folded header": (b"GET /health HTTP/1.1\r\n" + HOST + b"X-Folded: a\r\n b\r\n\r\n", b"200"),
    "a header line of 64 KiB": (b"GET /health HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 65536 + b"\r\n\r\n", b"400"),
    "a target of 64 KiB": (b"GET /" + b"a" * 65536 + b" HTTP/1.1\r\n" + HOST + b"\r\n", b"400"),
    "ten thousand headers": (b"GET /health HTTP/1.1\r\n" + HOST + b"a:b\r\n" * 10_000 + b"\r\n", b"400"),
    "a thousand headers": (b"GET /health HTTP/1.1\r\n" + HOST + b"a:b\r\n" * 1000 + b"\r\n", b"400"),
    "a bare line feed": (b"GET /health HTTP/1.1\n" + HOST + b"\n", b"200"),
    "a NUL in a header": (b"GET /health HTTP/1.1\r\n" + HOST + b"X: a\0b\r\n\r\n", b"400"),
    "a space before the colon": (b"GET /health HTTP/1.1\r\n" + HOST + b"X : a\r\n\r\n", b"400"),
    "two lengths that differ": (POST + LENGTH + b"Content-Length: 3\r\n\r\n" + BODY, b"400"),
    "two lengths that agree": (POST + LENGTH + LENGTH + b"\r\n" + BODY, b"200"),
    "a negative length": (POST + b"Content-Length: -1\r\n\r\n" + BODY, b"400"),
    "a signed length": (POST + b"Content-Length: +%d\r\n\r\n" % len(BODY) + BODY, b"400"),
    "a length of many digits": (POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", b"400"),
    "a length and chunks": (POST + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
    "chunks in another coding": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", b"400"),
    "a chunk without a size": (POST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", b"400"),
    "a chunk of a huge size": (POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 300 + b"\r\n", b"400"),
    "no body at all": (POST + b"\r\n", b"400"),
    "an upgrade": (
        b"GET /v1/models HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        b"200",
    ),
    "a body in many small chunks": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 20_000 + b"0\r\n\r\n",
        b"400",
    ),
    "a compressed body": (POST + b"Content-Encoding: gzip\r\n" + LENGTH + b"\r\n" + BODY, b"415"),
    "a form": (POST.replace(b"application/json", b"text/plain") + LENGTH + b"\r\n" + BODY, b"415"),
    "cookies of backslashes": (
        b"GET /health HTTP/1.1\r\n" + HOST + b'Cookie: a="' + b"\\" * 30_000 + b'"\r\n\r\n',
        b"200",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_requests_are_answered(site: Site, name: str, caplog: pytest.LogCaptureFixture) -> None:
    request, status = ODD[name]
    began = time.monotonic()
    with connect(site) as client, caplog.at_level(logging.WARNING):
        client.sendall(request)
        client.settimeout(8)
        got = client.recv(65536)
    assert got.split(b" ", 2)[1] == status, got
    assert b"Traceback" not in got
    assert time.monotonic() - began < 4
    assert caplog.records == []


def test_what_follows_an_early_refusal_is_not_read_as_a_request(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """The body was refused unread: nothing in it may be read as the next request, and nonsense in it is not an
    error."""
    site.store.keys.add("ada")
    framing = (b"Content-Length: 100000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n")
    for lengths in framing:
        with connect(site) as client:
            client.sendall(POST + lengths)
            assert client.recv(65536).startswith(b"HTTP/1.1 401 ")
            client.sendall(b"zzz\r\nGET /health HTTP/1.1\r\n" + HOST + b"\r\n")
            assert b"HTTP/1.1" not in read_all(client)  # the rest of the refusal, perhaps
    assert caplog.records == []


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(seed=st.integers(0, 2**32), name=st.sampled_from(sorted(ODD)))
def test_damaged_requests_end(site: Site, caplog: pytest.LogCaptureFixture, seed: int, name: str) -> None:
    """Any request with bytes changed, dropped or doubled, followed by the end of the data."""
    chance, request = random.Random(seed), bytearray(ODD[name][0][:4096])
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(request))
        match chance.randrange(3):
            case 0:
                request[at] = chance.randrange(256)
            case 1:
                del request[at : at + chance.randint(1, 20)]
            case _:
                request[at:at] = request[at : at + chance.randint(1, 40)]
        request = request or bytearray(b"\n")
    with connect(site) as client:
        try:
            client.sendall(bytes(request))
            client.shutdown(1)
        except OSError:
            pass  # refused already
        client.settimeout(10)
        read_all(client)
    assert [record for record in caplog.records if record.exc_info] == []


def test_ids_of_completions_tell_nothing_of_each_other(site: Site) -> None:
    """All chunks of one stream have the same id."""
    port = int(site.url.rsplit(":", 1)[1])
    kind = {"Content-Type": "application/json"}
    ids = {json.loads(fetch(port, "POST", "/v1/chat/completions", chat(), kind)[1])["id"] for _ in range(5)}
    _, stream = fetch(port, "POST", "/v1/chat/completions", chat(stream=True), kind)
    streamed = set(re.findall(r'"id": "(chatcmpl-[0-9a-f]+)"', stream.decode()))
    assert len(streamed) == 1
    assert len(ids | streamed) == 6
    assert all(re.fullmatch(r"chatcmpl-[0-9a-f]{32}", one) for one in ids | streamed)
