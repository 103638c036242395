"""`keepwarm serve` as a separate process on a tiny model, in an environment that a test chooses."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.polling import until

START_TIMEOUT_S = 240.0
_NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_PASSED_ON = ("PATH", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH")


def clean_environment(**changes: str) -> dict[str, str]:
    """The environment without anything of the tests' own but the paths of programs and libraries."""
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
        """The URL, once the server is ready. Fails with what was printed if the process ends before."""
        return self.wait_for(lambda: re.search(r"Keepwarm is ready: (\S+)", self.printed))[1]

    def wait_for(self, found: Any) -> Any:
        """The first true value of `found()`. Fails with what was printed if the process ends before."""
        results: list[Any] = []

        def is_found() -> bool:
            if result := found():
                results.append(result)
            assert results or self.process.poll() is None, self.printed
            return bool(results)

        until(is_found, START_TIMEOUT_S, 0.05)
        return results[0]

    def ended(self) -> int:
        """The exit code, once the process has ended by itself."""
        return self.process.wait(START_TIMEOUT_S)

    def stop(self) -> int:
        """Ends the process with SIGTERM, in whatever state it is; returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        finally:  # a shell that wraps the server may end before it
            with contextlib.suppress(ProcessLookupError):
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
    """The body at `url`, without any proxy."""
    with _NO_PROXY.open(url, timeout=60) as response:
        return bytes(response.read())
