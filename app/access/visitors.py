"""Where a request comes from: a program on this machine or somewhere else, and which address log-in tries count for.

A proxy on this machine looks like a program on this machine: same peer, and often the same Host. It is recognised by
what it adds. No list of the headers that proxies invent can be complete, so the test is the other way round: a request
is local only if all its headers are ones that clients send themselves, or at least describe no connection by name or
value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.access.client_headers import hop_in

SCOPE_KEY = "keepwarm.visitor"
IPV6_NETWORK_BITS = 64  # what one household gets: its addresses count as one
# Gradio builds its own address from these, no matter who sent them.
SELF_NAMING = frozenset({b"forwarded", b"x-forwarded-host", b"x-forwarded-proto", b"x-gradio-server"})
PLAIN_LOGIN = re.compile(rb"\s*keepwarm_login\s*=")
PLAIN_COOKIES = re.compile(rb"\s*keepwarm_(?:owner|login)\s*=")

Address = IPv4Address | IPv6Address
Network = Any  # `IPv4Network | IPv6Network`, which mypy cannot ask for membership


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who sent a request. Log-in tries are counted by `address`. `why_not_local` is "" for a program on this machine,
    otherwise a phrase that says what revealed that it is not."""

    address: str
    why_not_local: str
    is_https: bool
    through_tunnel: bool = False

    @property
    def is_local(self) -> bool:
        return not self.why_not_local


class Visitors:
    """Recognises senders from a request's scope alone. Any thread. `tunnel_port` belongs to the listener that only the
    share tunnel knows."""

    def __init__(self, trusted_proxies: Sequence[Network] = (), tunnel_port: int | None = None) -> None:
        self._trusted = tuple(trusted_proxies)
        self._tunnel_port = tunnel_port

    def of(self, scope: Scope) -> Visitor:
        """Who sent this request. Determined once: later the scope holds what the proxy claimed."""
        known = scope.get(SCOPE_KEY)
        if isinstance(known, Visitor):
            return known
        headers = Headers(scope=scope)
        peer = _address((scope.get("client") or ("",))[0])
        through_tunnel = self._tunnel_port is not None and (scope.get("server") or ("", None))[1] == self._tunnel_port
        is_trusted = self._is_trusted(peer) and not through_tunnel
        why = self._why_not_local(scope, headers, peer, through_tunnel, is_trusted)
        # A claim of TLS is believed from anyone: it only makes cookies stricter, and no page can make a browser lie.
        is_https = through_tunnel or scope.get("scheme") in ("https", "wss") or _says_https(headers)
        return Visitor(self._budget_of(headers, peer, is_trusted, why), why, is_https, through_tunnel)

    def _why_not_local(
        self, scope: Scope, headers: Headers, peer: Address | None, through_tunnel: bool, is_trusted: bool
    ) -> str:
        if through_tunnel:
            return "it came through the share link"
        if peer is None or not peer.is_loopback:
            return "it came from another machine"
        if is_trusted:
            return "it came through a proxy named by --trusted-proxy"
        if not is_loopback(_host_name(headers.get("host", ""))):
            return "it was sent to a name other than this machine's"
        if scope.get("http_version") == "1.0":  # what nginx speaks to its upstream by default
            return "it was sent as HTTP/1.0, as proxies do"
        if name := hop_in(headers.items()):
            return f"it carries the header {name[:60]!r}, as requests passed on by a proxy do"
        return ""

    def _budget_of(self, headers: Headers, peer: Address | None, is_trusted: bool, why: str) -> str:
        if peer is None:
            return "unknown"
        if is_trusted:
            said = next((one for one in _forwarded(headers) if not self._is_trusted(one)), None)
            return _network_of(said or peer)
        if peer.is_loopback and why:
            # An untrusted proxy or tunnel. The last address it names is the best way to tell its visitors apart; a
            # visitor that forges it meets the limit for all of them together.
            said = next(_forwarded(headers), None)
            return f"{_network_of(peer)} for {_network_of(said)}" if said else f"{_network_of(peer)} for others"
        return _network_of(peer)

    def _is_trusted(self, address: Address | None) -> bool:
        return address is not None and any(address in network for network in self._trusted)


NO_PROXIES = Visitors()


class VisitorGate:
    """The outermost ASGI layer: records who sent a request while the scope still shows it, then gives the other layers
    one consistent view: the scheme that the browser sees, no host but its own, and over TLS only cookies that no other
    host can have set."""

    def __init__(self, app: ASGIApp, visitors: Visitors) -> None:
        self._app = app
        self._visitors = visitors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            visitor = self._visitors.of(scope)
            headers = [(name, value) for name, value in scope["headers"] if name not in SELF_NAMING]
            if visitor.is_https:
                headers.append((b"x-forwarded-proto", b"https"))
                secure = "wss" if scope["type"] == "websocket" else "https"
                scope = {**scope, "scheme": secure}
                # Over TLS a log-in made without it does not count. Whose conversations a browser kept may still be
                # chosen at the new log-in, except through the tunnel: its host name is new at every start, so that no
                # browser holds older cookies for it.
                plain = PLAIN_COOKIES if visitor.through_tunnel else PLAIN_LOGIN
                headers = [_without_cookies(plain, *header) for header in headers]
            scope = {**scope, "headers": headers, SCOPE_KEY: visitor}
        await self._app(scope, receive, send)


def trusted_networks(text: str) -> tuple[Network, ...]:
    """The networks in `--trusted-proxy`: addresses or networks, separated by commas. Raises `ValueError` with a
    sentence."""
    parts = [part.strip() for part in text.split(",")]
    try:
        return tuple(ip_network(part) for part in parts)
    except ValueError as error:
        raise ValueError(
            f"--trusted-proxy takes addresses like 127.0.0.1 or networks like 10.0.0.0/8, with commas ({error})."
        ) from error


def is_loopback(name: str) -> bool:
    """Whether only this machine can reach this name or address."""
    if name == "localhost":
        return True
    address = _address(name)
    return address is not None and address.is_loopback


def _host_name(host: str) -> str:
    """The host name in a Host header, "" if it has none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _address(text: str) -> Address | None:
    try:
        found = ip_address(text.strip().partition("%")[0])
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None  # a listener on "::" sees ::ffff:127.0.0.1
    return mapped or found


def _network_of(address: Address) -> str:
    if isinstance(address, IPv4Address):
        return str(address)
    return str(IPv6Network((int(address), IPV6_NETWORK_BITS), strict=False))


def _forwarded(headers: Headers) -> Iterator[Address]:
    """The addresses in X-Forwarded-For, the nearest first. Ends at the first entry that is not an address."""
    said = ",".join(headers.getlist("x-forwarded-for"))
    for part in reversed(said.split(",")) if said else ():
        address = _address(_without_port(part.strip()))
        if address is None:
            return
        yield address


def _without_port(text: str) -> str:
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


def _says_https(headers: Headers) -> bool:
    said = ",".join([*headers.getlist("x-forwarded-proto"), headers.get("forwarded", "").replace(";", ",")]).lower()
    return bool({part.strip().strip('"') for part in said.split(",")} & {"https", "wss", "proto=https", 'proto="https'})


def _without_cookies(unwanted: re.Pattern[bytes], name: bytes, value: bytes) -> tuple[bytes, bytes]:
    if name != b"cookie":
        return name, value
    return name, b";".join(part for part in value.split(b";") if not unwanted.match(part))
