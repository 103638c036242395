"""Which requests come from this machine: known and unknown headers of proxies."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.access.client_headers import FAMILIES_OF_CLIENTS, OF_CLIENTS, hop_in
from app.access.visitors import NO_PROXIES, Visitors, trusted_networks
from tests.app.conftest import Connect, Serve
from tests.app.site import Site

# As the vendors' documents have them.
HOPS = """
OIDC_CLAIM_sub: 1234
SM_USER: ada
IV-User: ada
X-Authelia-User: ada
X-Consumer-Username: ada
X-MS-Client-Principal-Idp: aad
X-SigSci-Tags: x
X-Zrok-Token: x
X-Hopcount: 3
X-Connection-Secure: 1
X-Src: addr:203.0.113.9
X-Src: 203.0.113.9#443
X-Src: a/203.0.113.9
X-Src: 203.0.113.0/24
X-Src: example.org.
X-Openai-Forwarded-For: 203.0.113.9
X-Gradio-Proxy: 1
X-B3-Forwarded: 1
X-Openwebui-Source: 203.0.113.9
Forwarded: for=203.0.113.7;proto=https
Via: 1.1 varnish
X-Forwarded: 203.0.113.7
X-Forwarded-For: 203.0.113.7
X-Forwarded-For: unknown
X-Forwarded-Host: chat.example.org
X-Forwarded-Proto: https
X-Forwarded-Protocol: https
X-Forwarded-Port: 443
X-Forwarded-Prefix: /chat
X-Forwarded-Ssl: on
X-Forwarded-Scheme: https
X-Forwarded-Server: edge-1
X-Forwarded-Client-Cert: Hash=1
X-Forwarded-User: ada
X-Forwarded-Email: ada@example.org
X-Original-Forwarded-For: 203.0.113.7
X-Original-Host: chat.example.org
X-Original-URL: /v1/models
X-Original-To: 127.0.0.1
X-Original-Method: GET
X-Rewrite-URL: /v1/models
X-Real-IP: 203.0.113.7
X-Real-Port: 40000
X-Client-IP: 203.0.113.7
X-Cluster-Client-IP: 203.0.113.7
X-ProxyUser-Ip: 203.0.113.7
X-Remote-Addr: 203.0.113.7
X-Remote-IP: 203.0.113.7
X-Originating-IP: [203.0.113.7]
Client-IP: 203.0.113.7
True-Client-IP: 203.0.113.7
Forwarded-For-Ip: 203.0.113.7
Proxy-Client-IP: 203.0.113.7
WL-Proxy-Client-IP: 203.0.113.7
CF-Connecting-IP: 203.0.113.7
CF-Connecting-IPv6: 2001:db8::7
CF-IPCountry: DE
CF-Ray: 8f3a-AMS
CF-Visitor: {"scheme":"https"}
CF-Worker: example.org
CDN-Loop: cloudflare
Fly-Client-IP: 203.0.113.7
Fly-Region: ams
Fly-Forwarded-Port: 443
Fastly-Client-IP: 203.0.113.7
Fastly-FF: abc
X-Amzn-Trace-Id: Root=1-67891233-abcdef
X-Amz-Cf-Id: abc
CloudFront-Viewer-Address: 203.0.113.7:46532
CloudFront-Viewer-Country: DE
X-Appengine-User-IP: 203.0.113.7
X-Appengine-Country: DE
X-Cloud-Trace-Context: 105445aa7843bc8bf206b120001000/1;o=1
X-Azure-ClientIP: 203.0.113.7
X-Azure-SocketIP: 203.0.113.7
X-Azure-Ref: 0zxV+XAAAAABKMMOjBv2NT4TY6SQVjC0z
X-ARR-SSL: 2048|256|CN=R3|CN=chat
X-ARR-LOG-ID: 3a1f0b8e-7f4a-4d0c-a1d3-9f8d2f0c7c9b
X-SSL-Client-Verify: SUCCESS
Front-End-Https: on
X-Scheme: https
X-Url-Scheme: https
X-Envoy-External-Address: 203.0.113.7
X-Envoy-Internal: true
X-Varnish: 32770
X-Served-By: cache-ams-1
X-Vercel-Id: iad1::abc
X-NF-Client-Connection-IP: 203.0.113.7
X-Request-Start: t=1700000000
Connect-Time: 0
Total-Route-Time: 0
Tailscale-User-Login: ada@example.org
Tailscale-User-Name: Ada
Ngrok-Auth-User-Email: ada@example.org
X-Replit-User-Id: 1
X-Railway-Edge: eu
Remote-User: ada
X-WebAuth-User: ada
X-Auth-Request-User: ada
X-Goog-IAP-JWT-Assertion: abc
Cf-Access-Jwt-Assertion: abc
Ali-CDN-Real-IP: 203.0.113.7
L5d-Client-Id: web
Surrogate-Capability: edge=1
Max-Forwards: 10
Proxy-Connection: keep-alive
X_Forwarded_For: 203.0.113.7
"""
CLIENTS = """
X-Openwebui-User-Email: ada@example.org
Sec-CH-UA-Full-Version-List: "Chromium";v="110.0.0.0"
Accept: application/json, text/event-stream
Accept-Encoding: gzip, deflate, br, zstd
Accept-Language: de,en;q=0.8
Authorization: Bearer sk-unused
Cache-Control: no-cache
Pragma: no-cache
Priority: u=1, i
Sec-Fetch-Mode: cors
Sec-Ch-Ua-Platform: "Linux"
DNT: 1
Upgrade-Insecure-Requests: 1
User-Agent: curl/8.5.0
User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36
X-Stainless-Lang: python
X-Stainless-Package-Version: 2.8.1
X-Stainless-Read-Timeout: 600
X-Stainless-Retry-Count: 0
OpenAI-Organization: org-1
X-OpenWebUI-User-Name: Ada%20Lovelace
X-OpenWebUI-User-Email: ada@example.org
X-OpenWebUI-Chat-Id: 3a1f0b8e-7f4a-4d0c-a1d3-9f8d2f0c7c9b
HTTP-Referer: https://github.com/cline/cline
X-Title: Cline
Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01
Tracestate: vendor=1
Baggage: sentry-release=app.example.org
Sentry-Trace: 771a43a4192642f0b136d5159a501700-1
X-Request-Id: 3a1f0b8e-7f4a-4d0c-a1d3-9f8d2f0c7c9b
X-Prometheus-Scrape-Timeout-Seconds: 10
originator: codex_cli_rs
session_id: 3a1f0b8e-7f4a-4d0c-a1d3-9f8d2f0c7c9b
version: 0.20.0
X-My-App: notes
X-My-App-Version: 1.4.2
X-Initiator: agent
X-Task: summarise this
"""
LINES = [tuple(line.split(": ", 1)) for line in HOPS.strip().splitlines()]
ORDINARY = [tuple(line.split(": ", 1)) for line in CLIENTS.strip().splitlines()]
NAMES = st.from_regex(r"[a-z]{2,8}(-[a-z]{2,8}){0,3}", fullmatch=True).filter(
    lambda name: name not in OF_CLIENTS and not name.startswith(FAMILIES_OF_CLIENTS)
)
CONNECTIONS = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
    st.ip_addresses(v=6).map("[{}]:443".format),
    st.ip_addresses(v=4).map("{}:40112".format),
    st.ip_addresses(v=4).map('by="{}";secret=1'.format),
    st.ip_addresses(v=4).map("unknown, {}".format),
    st.sampled_from(["https", "http", "HTTPS", "wss", "https://chat.example.org/x", "chat.example.org", "/chat/v1"]),
    st.sampled_from(["chat.example.org:443", '{"scheme":"https"}', "host=chat.example.org", "TLSv1.3", "h2"]),
)


def test_each_header_of_a_hop_needs_a_key(site: Site, http: httpx.Client) -> None:
    assert http.get("/v1/models").status_code == 200
    for name, value in LINES:
        refused = http.get("/v1/models", headers={name: value})
        assert refused.status_code == 403, name
        assert name.lower() in refused.json()["error"]["message"]
        assert "keepwarm key add" in refused.json()["error"]["message"]
        assert http.get("/health", headers={name: value}).json() == {"live": True, "ready": True}
        assert http.get("/metrics", headers={name: value}).status_code == 403


def test_the_page_without_a_password_is_for_this_machine_too(serve: Serve) -> None:
    """Through a proxy the owner would be the same as without a key."""
    site = serve()
    with httpx.Client(base_url=site.url) as client:
        assert client.get("/").status_code == 200
        for name, value in LINES:
            refused = client.get("/", headers={name: value})
            assert refused.status_code == 403, name
            assert "--password-file" in refused.text


def test_ordinary_clients_are_let_in(site: Site, http: httpx.Client, connect: Connect) -> None:
    for name, value in ORDINARY:
        assert http.get("/v1/models", headers={name: value}).status_code == 200, (name, value)
    assert http.get("/v1/models", headers=dict(ORDINARY)).status_code == 200
    assert connect(site).models.list().data
    said = subprocess.run(["curl", "-sS", f"{site.url}/v1/models"], capture_output=True, text=True, check=True)
    assert "Scripted-1B" in said.stdout


@given(NAMES, CONNECTIONS)
def test_a_value_that_describes_a_connection_is_a_hops_under_any_name(name: str, value: str) -> None:
    assert hop_in([("host", "127.0.0.1"), (name, value)]) == name


@given(st.sampled_from(["x-{}-forwarded", "{}-client-ip", "x-{}-real-host", "{}-proxy-for", "x-{}clientip"]), NAMES)
def test_a_word_for_a_hop_is_enough_with_any_value(shape: str, name: str) -> None:
    assert hop_in([(shape.format(name), "1")])


@pytest.mark.alone
def test_long_headers_take_no_time() -> None:
    began = time.perf_counter()
    for piece in ("a.", "a", ".", "/a", "a:", "://a"[1:], " 1", "[", "a-"):
        hop_in([("x-app", piece * (60_000 // len(piece)))])
        hop_in([(f"x-{piece * (60_000 // len(piece))}", "1")])
    assert time.perf_counter() - began < 2.0


def test_http_1_0_is_what_proxies_speak(site: Site) -> None:
    address = urlsplit(site.url)
    with socket.create_connection((address.hostname, address.port), 10) as connection:
        connection.sendall(f"GET /v1/models HTTP/1.0\r\nHost: {address.netloc}\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 403")
    assert b"HTTP/1.0" in answer


def test_the_door_of_the_share_link_is_never_local(serve: Serve) -> None:
    site = serve(headless=True, has_tunnel=True)
    with httpx.Client(base_url=site.url) as local, httpx.Client(base_url=site.tunnel_url) as shared:
        assert local.get("/v1/models").status_code == 200
        for header in ({}, {"Host": "localhost"}, {"Host": urlsplit(site.url).netloc}):
            refused = shared.get("/v1/models", headers=header)
            assert refused.status_code == 403
            assert "share link" in refused.json()["error"]["message"]
            assert shared.get("/health", headers=header).json() == {"live": True, "ready": True}


def test_a_trusted_proxy_is_never_local(serve: Serve) -> None:
    site = serve(headless=True, trusted_proxy="10.0.0.0/8, 127.0.0.1")
    refused = httpx.get(f"{site.url}/v1/models")
    assert refused.status_code == 403
    assert "--trusted-proxy" in refused.json()["error"]["message"]


def scope_of(peer: str, *headers: tuple[str, str], server: tuple[str, int] = ("127.0.0.1", 80)) -> dict[str, object]:
    raw = [(name.lower().encode(), value.encode()) for name, value in (("host", "127.0.0.1"), *headers)]
    return {"type": "http", "scheme": "http", "http_version": "1.1", "client": (peer, 1), "server": server,
            "headers": raw}  # fmt: skip


@pytest.mark.parametrize(
    ("peer", "said", "expected"),
    [
        ("127.0.0.1", "", "127.0.0.1"),
        ("::ffff:127.0.0.1", "", "127.0.0.1"),
        ("203.0.113.7", "198.51.100.1", "203.0.113.7"),  # it may say what it likes
        ("2001:db8:1:2:3::4", "", "2001:db8:1:2::/64"),
        ("10.1.1.1", "198.51.100.1", "198.51.100.1"),
        ("10.1.1.1", "192.0.2.1, 198.51.100.1, 10.2.2.2", "198.51.100.1"),  # the last that is not a proxy
        ("10.1.1.1", "192.0.2.1, 198.51.100.1:4711", "198.51.100.1"),
        ("10.1.1.1", "[2001:db8::7]:4711", "2001:db8::/64"),
        ("10.1.1.1", "198.51.100.1, <script>", "10.1.1.1"),
        ("10.1.1.1", "", "10.1.1.1"),
        ("127.0.0.1", "192.0.2.1, 198.51.100.1", "127.0.0.1 for 198.51.100.1"),
        ("not an address", "", "unknown"),
    ],
)
def test_whose_tries_they_are(peer: str, said: str, expected: str) -> None:
    headers = [("X-Forwarded-For", said)] if said else []
    assert Visitors(trusted_networks("10.0.0.0/8")).of(scope_of(peer, *headers)).address == expected


def test_another_machine_is_not_local_with_any_headers() -> None:
    assert NO_PROXIES.of(scope_of("127.0.0.1")).is_local
    assert NO_PROXIES.of(scope_of("::ffff:127.0.0.1")).is_local
    assert not NO_PROXIES.of(scope_of("192.0.2.1")).is_local
    assert not NO_PROXIES.of({**scope_of("127.0.0.1"), "client": None}).is_local


def test_a_page_learns_no_other_name_from_a_header(serve: Serve, tmp_path: Path) -> None:
    site = serve(password="a kettle", has_tunnel=True)
    for name in ("X-Forwarded-Host", "X-Gradio-Server", "Forwarded"):
        for path in ("/login", "/"):
            assert "leak.invalid" not in httpx.get(f"{site.url}{path}", headers={name: "http://leak.invalid"}).text
