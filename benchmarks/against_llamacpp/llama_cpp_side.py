"""llama.cpp in a process of its own, as the benchmark sees it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.against_llamacpp.memory import resident_bytes

SCRIPT = Path(__file__).with_name("llama_process.py")


class LlamaCpp:
    """One file in llama.cpp. `flash` is "on" or "off"; `built_for` are the instructions that the library uses."""

    def __init__(self, python: str, gguf: Path, threads: int, context_tokens: int, flash: str) -> None:
        self.flash = flash
        arguments = [python, str(SCRIPT), str(gguf), str(threads), str(context_tokens), flash]
        self._process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.built_for = self._line().strip()

    def read_s(self, ids: Sequence[int], kept: int = 0) -> float:
        """Seconds of reading `ids`, of which it has the first `kept`, up to the next token."""
        return float(self._ask(do="read", ids=list(ids), kept=kept))

    def recall(self, ids: Sequence[int], kept: int, folder: Path) -> None:
        """Has `ids` in memory afterwards. Reading takes minutes and is not timed, so the memory is kept in `folder`: it
        fits every format of a shape, and how long a step takes does not depend on what it says."""
        path = folder / f"{len(ids)}-tokens-flash-{self.flash}.state"
        self._ask(do="recall", ids=list(ids), kept=kept, path=str(path))

    def decode_s(self, tokens: int) -> float:
        """Seconds of so many greedy steps, which it forgets afterwards."""
        return float(self._ask(do="decode", tokens=tokens))

    def loss(self, ids: Sequence[int]) -> float:
        """The mean negative log-likelihood of `ids`, in nats a token."""
        return float(self._ask(do="loss", ids=list(ids), piece=128))

    def resident_bytes(self) -> int:
        """What the process has in memory."""
        return resident_bytes(self._process.pid)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _ask(self, **asked: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return json.loads(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"llama.cpp ended: {self._process.args!r}")
        return line
