"""`keepwarm serve` as a process of its own, in surroundings that a test chooses, on a tiny model."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

START_TIMEOUT_S = 240.0
_NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_PASSED_ON = ("PATH", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH")


def clean_environment(**changes: str) -> dict[str, str]:
    """Nothing of the tests' own surroundings but where programs and libraries are."""
    return {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | changes


class StartedProcess:
    """What it prints goes into a file, or where `wrapped` sends it: a shell script that ends with `"$@"`. It runs in
    `directory`, by default this one, and `program` is what is started: by default the package of the source tree."""

    def __init__(
        self,
        folder: Path,
        flags: list[str],
        environment: dict[str, str],
        wrapped: str = "",
        program: Sequence[str] = (sys.executable, "-m", "app"),
        directory: Path | None = None,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self._printed = folder / f"printed-{len(list(folder.glob('printed-*')))}.txt"
        command = [*program, "serve", "--port", "0", "--data-dir", str(folder / "data"), *flags]
        if wrapped:
            command = ["/bin/sh", "-c", wrapped, "sh", *command]
        with self._printed.open("ab") as printed:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=directory,
                start_new_session=True,
            )

    @property
    def printed(self) -> str:
        return self._printed.read_text(encoding="utf-8", errors="surrogateescape")

    def url(self) -> str:
        """Once it is ready. Fails with what was printed when it ended instead."""
        return self.wait_for(lambda: re.search(r"Keepwarm is ready: (\S+)", self.printed))[1]

    def wait_for(self, found: Any) -> Any:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if result := found():
                return result
            assert self.process.poll() is None, self.printed
            time.sleep(0.05)
        raise AssertionError(self.printed)

    def ended(self) -> int:
        """Its exit code, once it has ended by itself."""
        return self.process.wait(START_TIMEOUT_S)

    def stop(self) -> int:
        """Ends it politely, whatever state it is in; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


def ask(url: str, key: str, text: str, tokens: int = 4, **more: Any) -> dict[str, Any]:
    """One chat completion."""
    models = json.loads(get(f"{url}/v1/models"))
    body = {
        "model": models["data"][0]["id"],
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "prompt_cache_key": key,
        **more,
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with _NO_PROXY.open(request, timeout=120) as response:
        return dict(json.load(response))


def get(url: str) -> bytes:
    """What is there, in spite of any proxy."""
    with _NO_PROXY.open(url, timeout=60) as response:
        return bytes(response.read())
