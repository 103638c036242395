"""A server in a separate process with few descriptors, raw-socket clients, and a probe that watches its health."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil


class Served:
    """`tests.app.scripted_serve` with at most `files` descriptors. What it prints and logs is in `lines`."""

    def __init__(self, data_dir: Path, files: int = 1024, token_delay_s: float = 0.0, password: str = "") -> None:
        serve = [sys.executable, "-m", "tests.app.scripted_serve", str(data_dir), str(token_delay_s), "1", password]
        self.process = subprocess.Popen(
            ["bash", "-c", f'ulimit -n {files}; exec "$@"', "bash", *serve],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[-1]
        self.port = int(self.url.rsplit(":", 1)[1])
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.memory = psutil.Process(self.process.pid).memory_info

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(10)

    def open(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def metric(self, name: str) -> float:
        text = fetch(self.port, "GET", "/metrics")[1].decode()
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            self.lines.extend(line.rstrip("\n") for line in lines)


def fetch(port: int, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Any:
    """(status, body) of a request on its own connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body or None, headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def chat(text: str = "Hello", **more: Any) -> bytes:
    return json.dumps({"model": "Scripted-1B", "messages": [{"role": "user", "content": text}], **more}).encode()


def head(path: str = "/v1/chat/completions", method: str = "POST", **headers: Any) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def read_all(client: socket.socket) -> bytes:
    """Everything until the end of the data. A reset counts as the end."""
    got = b""
    try:
        while piece := client.recv(65536):
            got += piece
    except ConnectionError:
        pass
    return got


class Probe:
    """Runs `tests.app.http.probe` while the block lasts; then holds what it saw."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.longest_s = 0.0
        self.answers = 0
        self.failures: list[str] = []

    def __enter__(self) -> Probe:
        command = [sys.executable, "-m", "tests.app.http.probe", str(self._port)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        seen = json.loads(self._process.communicate(timeout=70)[0])
        self.longest_s, self.answers, self.failures = seen["longest_s"], seen["answers"], seen["failures"]


class PeakMemory:
    """The most memory that a process held above its first value."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._first = self._peak = process.memory_info().rss
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    @property
    def over_idle_mib(self) -> float:
        return (self._peak - self._first) / 2**20

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._has_ended.set()
        self._thread.join(10)

    def _look(self) -> None:
        while not self._has_ended.wait(0.01):
            self._peak = max(self._peak, self._process.memory_info().rss)


def at_once(works: Sequence[Callable[[], Any]]) -> list[Any]:
    """The value of each call, or the exception it raised."""
    results: list[Any] = [None] * len(works)

    def run(number: int) -> None:
        try:
            results[number] = works[number]()
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return results
