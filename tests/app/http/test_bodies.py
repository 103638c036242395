"""Bodies that would cost too much: refused quickly with a sentence, while all other requests are answered."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.app.conftest import MODEL, Serve
from tests.app.http.test_connections import JSON, connect, under_load
from tests.app.http.under_load import PeakMemory, Probe, Served, at_once, chat, fetch, head, read_all
from tests.app.site import Site
from tests.polling import pause

__all__ = ["under_load"]  # a fixture
MIB = 2**20


def many(unit: bytes, size_bytes: int, before: bytes, after: bytes) -> bytes:
    return before + b",".join([unit] * (size_bytes // (len(unit) + 1))) + after


ASKS = b'"model":"Scripted-1B","messages":[{"role":"user","content":"x"}]'
SAYS = b'{"model":"Scripted-1B","messages":[{"role":"user","content":'
KINDS: dict[str, Callable[[int], bytes]] = {
    "messages that are none": lambda n: many(b'{"r":1}', n, b'{"messages":[', b"]}"),
    "tools that are none": lambda n: many(b'{"a":{}}', n, b"{" + ASKS + b',"tools":[', b"]}"),
    "stops": lambda n: many(b'""', n, b"{" + ASKS + b',"stop":[', b"]}"),
    "modalities": lambda n: many(b"1", n, b"{" + ASKS + b',"modalities":[', b"]}"),
    "metadata": lambda n: many(b"[]", n, b"{" + ASKS + b',"metadata":[', b"]}"),
    "a logit bias": lambda n: many(b'"1":1', n, b"{" + ASKS + b',"logit_bias":{', b"}}"),
    "parts": lambda n: many(b'{"type":"text","text":"x"}', n, SAYS + b"[", b"]}]}"),
    "parts that are none": lambda n: many(b"1", n, SAYS + b"[", b"]}]}"),
    "tool calls": lambda n: many(b"{}", n, b'{"messages":[{"role":"assistant","tool_calls":[', b"]}]}"),
    "parameters": lambda n: many(
        b"[]", n, b"{" + ASKS + b',"tools":[{"type":"function","function":{"name":"f","parameters":{"a":[', b"]}}}]}"
    ),
    "a tower": lambda n: b"{" + ASKS + b',"metadata":' + b"[" * n,
    "a tower of objects": lambda n: b'{"a":' * (n // 5),
    "digits": lambda n: b"{" + ASKS + b',"seed":' + b"1" * n + b"}",
    "a fraction of many digits": lambda n: b"{" + ASKS + b',"temperature":0.' + b"1" * n + b"}",
    "many long numbers": lambda n: many(b"1" * 399, n, b"{" + ASKS + b',"stop":[', b"]}"),
    "one key over and over": lambda n: many(b'"messages":[]', n, b"{", b"}"),
    "many keys": lambda n: b"{" + b",".join(b'"%d":1' % i for i in range(n // 12)) + b"}",
    "one long string": lambda n: SAYS + b'"' + b"x" * n + b'"}]}',
    "one wide string": lambda n: SAYS + b'"' + b"x" * n + "😀".encode() + b'"}]}',
    "escapes": lambda n: SAYS + b'"' + b"\\n" * (n // 2) + b'"}]}',
    "quotes": lambda n: SAYS + b'"' + b'\\"' * (n // 2) + b'"}]}',
    "a string without an end": lambda n: SAYS + b'"' + b"\\\\" * (n // 2),
    "a long name of a model": lambda n: b'{"model":"' + b"x" * n + b'","messages":[{"role":"user","content":"x"}]}',
    "a long kind of part": lambda n: SAYS + b'[{"type":"' + b"x" * n + b'","text":"x"}]}]}',
    "white space": lambda n: b"{" + b" " * n + b"}",
    "zeros": lambda n: b"\0" * n,
    "UTF-16": lambda n: json.dumps({"model": "x" * (n // 2)}).encode("utf-16"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_costs_too_much_is_refused_in_a_sentence(site: Site, http: httpx.Client, kind: str) -> None:
    body = KINDS[kind](5 * MIB)
    refused = http.post("/v1/chat/completions", content=body, headers=JSON)
    assert refused.status_code in (400, 404)
    assert 10 < len(refused.json()["error"]["message"]) < 500
    assert refused.elapsed.total_seconds() < 10
    assert site.manager.list_conversations("local") == []


@pytest.mark.parametrize("password", ["", "secret"])
def test_no_body_is_read_before_its_sender_is_known(serve: Serve, password: str) -> None:
    """The refusal arrives although no byte of the body was sent."""
    site = serve(headless=True, password=password or None)
    site.store.keys.add("ada")
    for framing in ({"Content_Length": 7 * MIB}, {"Transfer_Encoding": "chunked"}, {"Expect": "100-continue"}):
        with connect(site) as client:
            client.sendall(head(Content_Type="application/json", **{"Content_Length": 100, **framing})
                           if "Expect" in framing else head(Content_Type="application/json", **framing))  # fmt: skip
            assert read_all(client).startswith(b"HTTP/1.1 401 ")


def test_a_conversation_of_megabytes_is_taken(serve: Serve) -> None:
    site = serve(headless=True, context_limit_tokens=10_000_000, bytes_per_token=16)
    with httpx.Client(base_url=site.url, timeout=60) as http:
        answer = http.post(
            "/v1/chat/completions",
            json={"model": MODEL, "messages": [{"role": "user", "content": "word " * 100_000}], "max_tokens": 4},
        )
        parts = [{"type": "text", "text": "é\n"}] * 5_000
        body = {"model": MODEL, "messages": [{"role": "user", "content": parts}], "max_tokens": 4}
        in_parts = http.post("/v1/chat/completions", json=body)
        chunked = http.post("/v1/chat/completions", content=iter([json.dumps(body).encode()]), headers=JSON)
    assert [answer.status_code, in_parts.status_code, chunked.status_code] == [200, 200, 200]


def test_compressed_and_other_bodies_are_415(http: httpx.Client) -> None:
    for headers in (
        {**JSON, "Content-Encoding": "gzip"},
        {**JSON, "Content-Encoding": "br, gzip"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {},
    ):
        refused = http.post("/v1/chat/completions", content=gzip.compress(chat()), headers=headers)
        assert refused.status_code == 415
        assert refused.json()["error"]["message"].endswith(".")
    assert http.post("/v1/chat/completions", content=chat(),
                     headers={"Content-Type": "application/json; charset=utf-8"}).status_code == 200  # fmt: skip


def test_the_other_routes_of_the_api_leave_bodies_unread(http: httpx.Client, site: Site) -> None:
    session = http.post("/v1/chat/completions", content=chat(), headers=JSON).json()["keepwarm"]["session_id"]
    for method, path in (
        ("POST", f"/v1/sessions/{session}/pin"),
        ("PATCH", f"/v1/sessions/{session}"),
        ("POST", "/v1/nothing"),
        ("POST", "/nothing"),
    ):
        with connect(site) as client:
            client.sendall(head(path, method, Content_Type="application/json", Content_Length=31 * MIB))
            client.settimeout(5)
            assert client.recv(16).startswith(b"HTTP/1.1 ")


def send_32_of_each(served: Served, bodies: dict[str, bytes], headers: dict[str, str]) -> list[dict[str, Any]]:
    """Sends 32 of each kind at once; returns what the probe and the memory showed."""
    figures = []
    for kind, body in bodies.items():
        asks = [lambda body=body: fetch(served.port, "POST", "/v1/chat/completions", body, headers)] * 32
        with PeakMemory(psutil.Process(served.process.pid)) as memory, Probe(served.port) as probe:
            began = time.monotonic()
            results = at_once(asks)
            took_s = time.monotonic() - began
        statuses = sorted(
            {result[0] if isinstance(result, tuple) else type(result).__name__ for result in results}, key=str
        )
        figures.append(
            {
                "kind": kind,
                "mib": len(body) >> 20,
                "silence_s": round(probe.longest_s, 2),
                "took_s": round(took_s, 1),
                "over_idle_mib": round(memory.over_idle_mib),
                "statuses": statuses,
                "failures": probe.failures,
            }
        )
        print(figures[-1])
    return figures


@pytest.mark.alone
def test_health_answers_while_32_such_requests_run(under_load: Callable[..., Served]) -> None:
    served = under_load()
    with Probe(served.port) as idle:
        pause(2)
    kind = "messages that are none"
    (found,) = send_32_of_each(served, {kind: KINDS[kind](4 * MIB)}, JSON)
    assert found["failures"] == []
    assert found["silence_s"] < 0.5 + 2 * idle.longest_s
    assert found["over_idle_mib"] < 400
    assert set(found["statuses"]) <= {400, 503}


@pytest.mark.alone
@pytest.mark.long
@pytest.mark.parametrize("size_mib", [31, 7.9])
@pytest.mark.parametrize("caller", ["local", "stranger", "behind a password", "with a key"])
def test_health_answers_while_32_of_every_kind_run(
    under_load: Callable[..., Served], tmp_path: Path, size_mib: float, caller: str
) -> None:
    served = under_load(password="secret" if caller == "behind a password" else "")
    headers = dict(JSON)
    if caller in ("stranger", "with a key"):
        from sessions.store.tables.keys import open_keys

        keys, database = open_keys(tmp_path / "data")
        text = keys.add("ada")[1]
        database.close()
        if caller == "with a key":
            headers["Authorization"] = f"Bearer {text}"
    with Probe(served.port) as idle:
        pause(5)
    figures = send_32_of_each(served, {kind: make(int(size_mib * MIB)) for kind, make in KINDS.items()}, headers)
    for found in figures:
        assert found["failures"] == [], found
        assert found["silence_s"] < 0.5 + 2 * idle.longest_s, (found, idle.longest_s)
        assert found["over_idle_mib"] < 400, found
    assert [line for line in served.lines if "connections refused" not in line] == []
