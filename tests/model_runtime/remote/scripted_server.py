"""A server without a model, for tests of remote engines: real HTTP, ids in, ids out, a cache of prefixes, and every
fault.

What it answers is a function of the ids that arrived. `Script` has what the dialects share; the dialects are in
`scripted_dialects`.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.model_runtime.tiny_tokenizers import wrapped
from tests.polling import pause

DRIP_S = 0.05
AnswerFunction = Callable[[tuple[int, ...]], list[int]]


@cache
def byte_level() -> PreTrainedTokenizerFast:
    """The tokenizer of most tests. It is never changed."""
    return wrapped("byte-level")


class Refused(Exception):
    """Another status than 200."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Dialect(Protocol):
    """How a kind of server looks from outside."""

    def get(self, server: ScriptedServer, path: str) -> dict[str, Any] | None: ...

    def post(self, server: ScriptedServer, path: str, body: Mapping[str, Any]) -> dict[str, Any] | None: ...

    def events(self, server: ScriptedServer, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]] | None: ...


class ScriptedServer:
    """Listens on a free loopback port until `close`. The attributes may be changed at any time."""

    def __init__(
        self,
        dialect: Dialect,
        tokenizer: PreTrainedTokenizerFast | None = None,
        model: str = "Scripted-1B",
        context_tokens: int = 2048,
        slots: int = 4,
        port: int = 0,
    ) -> None:
        self.dialect = dialect
        self.tokenizer = tokenizer or byte_level()
        self.plain = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        self.plain.encode_special_tokens = True
        self.model = model
        self.context_tokens = context_tokens
        self.slots = slots
        self.vocabulary_tokens = len(self.tokenizer)
        self.answer: AnswerFunction = self.repeat_last_words
        self.asked: list[dict[str, Any]] = []  # the bodies of requests for answers
        self.headers: list[dict[str, str]] = []  # and their headers, by names in lower case
        self.questions = 0  # what it serves, and how it is: those that were answered
        self.given_up = 0  # answers whose client closed the stream
        self.refuse: list[tuple[int, dict[str, str], bytes]] = []  # the next answers: status, headers, body
        self.is_loading = False  # 503 for everything
        self.keeps_s = 60.0  # closes a connection at its next request after that time, without an answer
        self.question_delay_s = 0.0  # before it says what it serves
        self.is_frozen = threading.Event()  # sends nothing more, and keeps every connection
        self.drips = ""  # "answers", or "questions" which compute nothing: sends their bytes one by one, slowly
        self.stays_open_with = b""  # sent again and again in place of further ids, until the client goes
        self.stays_open_after = 0  # so many ids
        self.key = ""  # 401 without it
        self.token_delay_s = 0.0
        self.first_delay_s = 0.0
        self.breaks_after: int | None = None  # closes the connection after so many ids of every answer
        self.sends_instead: bytes | None = None  # in place of the events
        self.reports_reuse = True
        self.cache: list[tuple[int, ...]] = []  # what it has read
        self.salted: dict[str, list[tuple[int, ...]]] = {}  # the same by salt
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._http = _Http(self, port)
        self.address = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._http.server_address[1])

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)

    def text(self, ids: list[int]) -> str:
        return str(self.tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False))

    def shown(self, ids: list[int]) -> str:
        """Their text without control tokens."""
        return str(self.tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=True))

    @property
    def end_id(self) -> int:
        assert isinstance(self.tokenizer.eos_token_id, int)
        return self.tokenizer.eos_token_id

    def repeat_last_words(self, ledger: tuple[int, ...]) -> list[int]:
        """Says how many ids there are, so that any other ledger gives another answer."""
        return [*self.ids(f"I read {len(ledger)} tokens, sum {sum(ledger)}."), self.end_id]

    def read(self, ledger: tuple[int, ...], salt: str = "") -> int:
        """How many ids of the ledger it had read before under this salt; now it has all of them."""
        with self._lock:
            reused = max((common(held, ledger) for held in self._held(salt)), default=0)
            self._held(salt).append(ledger)
            return min(reused, len(ledger) - 1)

    def wrote(self, ledger: tuple[int, ...], salt: str = "") -> None:
        with self._lock:
            self._held(salt).append(ledger)

    def _held(self, salt: str) -> list[tuple[int, ...]]:
        return self.salted.setdefault(salt, []) if salt else self.cache

    def track(self, connection: socket.socket, is_open: bool) -> None:
        with self._lock:
            (self._connections.add if is_open else self._connections.discard)(connection)

    def kill(self) -> None:
        """At once, in the middle of whatever it does."""
        self.is_frozen.clear()
        self._http.shutdown()
        self._http.server_close()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)

    close = kill


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, script: ScriptedServer, port: int) -> None:
        self.script = script
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone is not an error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Http

    def setup(self) -> None:
        super().setup()
        self._asked_at = time.monotonic()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.server.script.track(self.connection, True)

    def finish(self) -> None:
        self.server.script.track(self.connection, False)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, format: str, *arguments: object) -> None:
        """Tests print nothing."""

    def do_GET(self) -> None:
        while self.server.script.is_frozen.is_set():
            pause(0.02)
        pause(self.server.script.question_delay_s)
        if not self._is_refused():
            found = self.server.script.dialect.get(self.server.script, self.path)
            self._send(404 if found is None else 200, found or {"error": {"message": "File Not Found"}})
            self.server.script.questions += 1

    def do_POST(self) -> None:
        script = self.server.script
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self._is_refused():
            return
        try:
            found = script.dialect.post(script, self.path, body)
        except Refused as refused:
            self._send(refused.status, {"error": {"message": refused.message}})
            return
        if found is not None:
            self._send(200, found)
            return
        events = script.dialect.events(script, self.path, body)
        if events is None:
            self._send(404, {"error": {"message": "File Not Found"}})
            return
        script.asked.append(dict(body))
        script.headers.append({name.lower(): value for name, value in self.headers.items()})
        if script.refuse:
            status, headers, content = script.refuse.pop(0)
            self._send(status, content, headers)
            return
        self._stream(script, events)

    def _is_refused(self) -> bool:
        script = self.server.script
        waited_s, self._asked_at = time.monotonic() - self._asked_at, time.monotonic()
        if waited_s > script.keeps_s:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return True
        if script.is_loading:
            self._send(503, {"error": {"message": "Loading model"}})
        elif script.key and self.headers.get("authorization") != f"Bearer {script.key}":
            self._send(401, {"error": {"message": "Invalid API Key"}})
        else:
            return False
        return True

    def _stream(self, script: ScriptedServer, events: Iterator[dict[str, Any]]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        try:
            pause(script.first_delay_s)
            if script.sends_instead is not None:
                self._chunk(script.sends_instead)
                self._chunk(b"")
                return
            sent = 0
            for event in events:
                tokens = event.pop("_tokens", 0)
                if script.breaks_after is not None and sent + tokens > script.breaks_after:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                if script.stays_open_with and sent + tokens > script.stays_open_after:
                    self._stay_open(script)
                    return
                sent += tokens
                pause(script.token_delay_s if tokens else 0.0)
                while script.is_frozen.is_set():
                    pause(0.02)
                data = b"data: " + json.dumps(event).encode() + b"\n\n"
                for place in range(len(data)) if script.drips == "answers" else ():
                    self._chunk(data[place : place + 1])
                    pause(DRIP_S)
                self._chunk(data)
            self._chunk(b"")
        except OSError:
            script.given_up += 1
            self.close_connection = True

    def _stay_open(self, script: ScriptedServer) -> None:
        while script.stays_open_with:
            self._chunk(script.stays_open_with)
            pause(DRIP_S)

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _send(self, status: int, body: dict[str, Any] | bytes, headers: Mapping[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        for place in range(len(content)) if self.server.script.drips == "questions" else ():
            self.wfile.write(content[place : place + 1])
            pause(DRIP_S)
        self.wfile.write(content)


def common(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """The length of the longest common prefix."""
    return next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
