"""HTTP to one server: JSON in, JSON or a stream of events out, and every failure as `EngineTrouble`."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any

import httpx
import orjson

from model_runtime.remote.trouble import EngineTrouble, Kind

CONNECT_S = 5.0
ASK_S = 10.0  # for a question that computes nothing
MOST_ANSWER_BYTES = 16 << 20
MOST_EVENT_BYTES = 4 << 20
_QUOTED_CHARS = 200
NO_ACCESS = (401, 403)
LATER = (429, 503)  # it may work in a moment
_IGNORED_LINES = (b":", b"event:", b"id:", b"retry:")  # of server-sent events


@dataclass(slots=True)
class Clock:
    """How long a server has said nothing new. What it sends besides, comments that keep a connection open or bytes of a
    line, is noted and does not set it back."""

    begun: float = field(default_factory=time.monotonic)
    has_sent: bool = False
    read_tokens: int = 0

    def hear(self, token_ids: tuple[int, ...], read_tokens: int) -> bool:
        """Starts again, and says so, for ids and for more tokens read than before."""
        if not token_ids and read_tokens <= self.read_tokens:
            return False
        self.begun, self.has_sent = time.monotonic(), False
        self.read_tokens = max(self.read_tokens, read_tokens)
        return True


class Connection:
    """Requests to one server. Only on the loop that it was made on. `close` at the end. `silence_s`: so long an answer
    may bring nothing new."""

    def __init__(self, address: str, key: str, silence_s: float) -> None:
        self.address = address
        self._silence_s = silence_s
        # An engine is spoken to directly, whatever proxies the environment names for the web.
        self._client = httpx.AsyncClient(
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(ASK_S, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            verify=_certificates(),
            trust_env=False,
        )

    async def get(self, path: str) -> dict[str, Any]:
        """The JSON object at `path`."""
        return await self._ask("GET", path, None)

    async def post(self, path: str, body: Mapping[str, Any], limit_s: float | None = None) -> dict[str, Any]:
        """The JSON object that answers `body`."""
        return await self._ask("POST", path, encoded(body), limit_s)

    async def answer(self, path: str, content: bytes, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The same for what has to be computed."""
        return await self._ask_once("POST", path, content, self._silence_s, headers)

    @asynccontextmanager
    async def stream(
        self, path: str, content: bytes, clock: Clock, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """The events that answer a body of JSON, as they come; the clock has to hear what is in them. Leaving the block
        closes the connection, which ends the server's work."""
        timeout = httpx.Timeout(None, connect=CONNECT_S)  # the clock has the limit
        request = self._client.stream(
            "POST", self.address + path, content=content, headers=_json(headers), timeout=timeout
        )
        try:
            async with AsyncExitStack() as stack:
                async with self._within(self._silence_s, clock):
                    response = await stack.enter_async_context(request)
                    if response.status_code != 200:
                        raise self._refusal(response.status_code, response.headers, await self._whole(response))
                yield await stack.enter_async_context(aclosing(self._events(response, clock)))
        except httpx.HTTPError as error:
            raise self._broken(error) from error

    async def close(self) -> None:
        await self._client.aclose()

    async def _ask(self, method: str, path: str, content: bytes | None, limit_s: float | None = None) -> dict[str, Any]:
        try:
            return await self._ask_once(method, path, content, limit_s)
        except EngineTrouble as trouble:
            if trouble.kind is not Kind.BROKEN:
                raise
        return await self._ask_once(method, path, content, limit_s)  # it computes nothing, so it may be asked again

    async def _ask_once(
        self,
        method: str,
        path: str,
        content: bytes | None,
        limit_s: float | None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        url, limit_s = self.address + path, limit_s or ASK_S
        timeout = httpx.Timeout(limit_s, connect=CONNECT_S)
        request = self._client.stream(
            method, url, content=content, headers=_json(headers) if content is not None else None, timeout=timeout
        )
        try:
            async with self._within(limit_s, Clock()), request as response:
                whole = await self._whole(response)
        except httpx.HTTPError as error:
            raise self._broken(error) from error
        if response.status_code != 200:
            raise self._refusal(response.status_code, response.headers, whole)
        return self._object(whole)

    @asynccontextmanager
    async def _within(self, limit_s: float, clock: Clock) -> AsyncIterator[None]:
        """A limit on all of it. httpx's own are for each piece, so that a server that sends a byte now and then would
        never be too slow."""
        try:
            async with asyncio.timeout(clock.begun + limit_s - time.monotonic()):
                yield
        except TimeoutError:
            raise self._slow(limit_s, clock.has_sent) from None

    async def _whole(self, response: httpx.Response) -> bytes:
        whole = b""
        async for piece in response.aiter_bytes():
            whole += piece
            if len(whole) > MOST_ANSWER_BYTES:
                raise self._garbage("it sent more than can be an answer")
        return whole

    async def _events(self, response: httpx.Response, clock: Clock) -> AsyncGenerator[dict[str, Any], None]:
        rest, pieces = b"", response.aiter_bytes()
        while True:
            async with self._within(self._silence_s, clock):
                piece = await anext(pieces, None)
            if piece is None:
                return
            clock.has_sent = True
            *lines, rest = (rest + piece).split(b"\n")
            if len(rest) > MOST_EVENT_BYTES:
                raise self._garbage("it sent an event without an end")
            for line in lines:
                line = line.strip()
                if not line or line.startswith(_IGNORED_LINES):
                    continue
                name, _, data = line.partition(b":")
                if name not in (b"data", b"error"):
                    raise self._garbage("it sent something else than events")
                if data.strip() == b"[DONE]":
                    return
                event = self._object(data)
                if name == b"error" or event.get("error"):
                    raise self._failed(event)
                yield event

    def _object(self, data: bytes) -> dict[str, Any]:
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            raise self._garbage("what it sent is not JSON") from None
        if not isinstance(found, dict):
            raise self._garbage("what it sent is not a JSON object")
        return found

    def _garbage(self, clause: str) -> EngineTrouble:
        return garbage(self.address, clause)

    def _failed(self, event: dict[str, Any]) -> EngineTrouble:
        return EngineTrouble(Kind.FAILED, f"The engine at {self.address} failed on this answer{_quoted(event)}.")

    def _refusal(self, status: int, headers: httpx.Headers, whole: bytes) -> EngineTrouble:
        try:
            said = _quoted(json.loads(whole))
        except (ValueError, RecursionError):
            said = ""
        where = f"The engine at {self.address}"
        if status in NO_ACCESS:
            sentence = f"{where} does not accept the key (HTTP {status}): give it the right one with --engine-key-file."
            return EngineTrouble(Kind.REFUSED, sentence, status)
        if status in LATER:
            sentence = f"{where} has no room now (HTTP {status}{said}). Try again in a moment."
            return EngineTrouble(Kind.BUSY, sentence, status, _seconds(headers.get("retry-after")))
        kind = Kind.REFUSED if 400 <= status < 500 else Kind.FAILED
        verb = "refused the request" if kind is Kind.REFUSED else "failed"
        return EngineTrouble(kind, f"{where} {verb} (HTTP {status}{said}).", status)

    def _slow(self, limit_s: float, has_sent: bool = False) -> EngineTrouble:
        where = f"The engine at {self.address}"
        if not has_sent:
            return EngineTrouble(Kind.SLOW, f"{where} has not answered for {limit_s:,.0f} seconds.")
        sentence = (
            f"{where} has kept the connection open for {limit_s:,.0f} seconds without a token or a report of progress."
        )
        return EngineTrouble(
            Kind.SLOW, f"{sentence} If it needs longer to read, start Keepwarm with a larger --engine-silence."
        )

    def _broken(self, error: httpx.HTTPError) -> EngineTrouble:
        where = f"The engine at {self.address}"
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return EngineTrouble(Kind.AWAY, f"{where} cannot be reached ({_reason(error)}).")
        if isinstance(error, httpx.TimeoutException):
            return self._slow(error.request.extensions.get("timeout", {}).get("read") or self._silence_s)
        return EngineTrouble(Kind.BROKEN, f"{where} broke the connection.")


@cache
def _certificates() -> ssl.SSLContext:
    """The system's, read once."""
    return ssl.create_default_context()


def encoded(body: Mapping[str, Any]) -> bytes:
    """A body as it is sent. 16,000 ids take 0.15 ms (2 ms with `json`)."""
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:  # half a surrogate pair in a model's name, a number of more than 64 bits
        return json.dumps(body, separators=(",", ":")).encode()


def garbage(address: str, clause: str) -> EngineTrouble:
    """For what a server sent and what makes no sense."""
    return EngineTrouble(Kind.GARBAGE, f"The engine at {address} answered with something else than expected: {clause}.")


def no_room(address: str, said: str) -> EngineTrouble:
    """For a server that says so in an event."""
    return EngineTrouble(Kind.BUSY, f"The engine at {address} has no room now{_quoted(said)}. Try again in a moment.")


def _json(headers: Mapping[str, str] | None = None) -> dict[str, str]:
    return {"content-type": "application/json", **(headers or {})}


def _quoted(said: object) -> str:
    """The server's own message, as `: "..."`."""
    found = said.get("error", said) if isinstance(said, dict) else said
    message = found.get("message") if isinstance(found, dict) else found
    if not isinstance(message, str) or not message.strip():
        return ""
    line = " ".join(message.split())
    return f': "{line[:_QUOTED_CHARS]}{"…" if len(line) > _QUOTED_CHARS else ""}"'


def _seconds(text: str | None) -> float | None:
    """Of a header that has them as a number or as a date (RFC 9110, 10.2.3)."""
    if text is None:
        return None
    try:
        return max(0.0, float(text) if text[:1].isdigit() else parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _reason(error: Exception) -> str:
    if isinstance(error, httpx.ConnectTimeout):
        return f"no answer within {CONNECT_S:.0f} seconds"
    said = str(error)
    if "refused" in said.lower() or "attempts failed" in said.lower():
        return "connection refused"
    if "Name or service not known" in said or "getaddrinfo" in said or "name resolution" in said:
        return "its name is not known"
    return said.splitlines()[0][:_QUOTED_CHARS] if said else type(error).__name__
