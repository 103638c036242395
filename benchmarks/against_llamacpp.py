"""How fast is the same file here and in llama.cpp, on the same threads, in turns?

Decoding at 0, 2,000 and 6,000 tokens of history, reading 2,000 tokens, and the memory of the weights. llama.cpp's
server runs in a Python that has `xllamacpp` (`make build/llama/.installed`), with float16 KVs, once with flash
attention and once without: the better one counts. The wheel on PyPI is built for AVX2; what a build uses is printed,
and one for this very processor may be faster. Ratios are medians of alternating runs, above 1 where Keepwarm is faster.

    KEEPWARM_LLAMA_PYTHON=build/llama/bin/python python -m benchmarks.against_llamacpp [--shapes embedded 05b 1b]
        [--formats q4_0 q4_k_m q8_0] [--activations int8] [--threads 2] [--repeats 5] [--tokens 24] [--files FOLDER]
        [--histories 0 2000 6000] [--read 2000]

The embedded model has its own format, Q4_1; the other shapes are random models, written into FOLDER once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import socket
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.driver import answer, prose_ids, start
from benchmarks.random_gguf import FORMATS, SHAPES, write_model
from benchmarks.report import device_name, finish, median, table
from model_runtime.engine.engine import LocalEngine
from model_runtime.engine.passing_thread import in_passing_thread
from model_runtime.interface.config import EMBEDDED, ModelConfig, default_cache_dir
from model_runtime.loading.embedded import embedded_gguf
from model_runtime.loading.loaded import LoadedModel
from model_runtime.loading.loading import load_model, unload

CONTEXT_TOKENS = 6512
FIRST_TOKENS = 8  # "no history" still needs a few tokens to start from
SCRIPT = Path(__file__).with_name("llama_server.py")


class LlamaServer:
    """llama.cpp's server as a process; `built_for` are the instructions that it uses."""

    def __init__(self, python: str, gguf: Path, threads: int, flash: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        arguments = [python, str(SCRIPT), str(gguf), str(port), str(threads), str(CONTEXT_TOKENS), flash]
        self._process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        self.built_for = self._process.stdout.readline().strip()
        if self._process.stdout.readline() != "ready\n":
            raise SystemExit(f"llama.cpp's server did not start: {' '.join(arguments)}")
        self._address = f"http://127.0.0.1:{port}/completion"

    def timings(self, ids: Sequence[int], new_tokens: int, keeps: bool) -> dict[str, float]:
        """What it says of one answer: `predicted_per_second`, `prompt_per_second`, `prompt_n` tokens were read."""
        body = {"prompt": list(ids), "n_predict": new_tokens, "temperature": 0, "ignore_eos": True}
        data = json.dumps(body | {"cache_prompt": keeps}).encode()
        request = urllib.request.Request(self._address, data, {"content-type": "application/json"})
        with urllib.request.urlopen(request) as reply:
            said: dict[str, Any] = json.load(reply)
        return dict(said["timings"])

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class Duel:
    """One file, loaded here and by llama.cpp's servers."""

    def __init__(self, engine: LocalEngine, loaded: LoadedModel, servers: Sequence[LlamaServer]) -> None:
        self._engine, self._loaded, self._servers = engine, loaded, servers

    def decode(self, history_tokens: int, tokens: int, repeats: int) -> tuple[float, float]:
        """Tokens a second here, and of the better server."""
        history = prose_ids(self._loaded, max(history_tokens, FIRST_TOKENS))
        kv = self._engine.new_kv()
        answer(self._engine, kv, history, 2)
        for server in self._servers:
            server.timings(history, 2, keeps=True)
        ours: list[float] = []
        theirs: list[list[float]] = [[] for _ in self._servers]
        for _ in range(repeats):
            found = answer(self._engine, kv, history, tokens).finished
            ours.append((found.sampled_tokens - 1) / found.decode_s)
            for server, speeds in zip(self._servers, theirs, strict=True):
                speeds.append(server.timings(history, tokens, keeps=True)["predicted_per_second"])
        self._engine.release(kv)
        return median(ours), max(map(median, theirs))

    def read(self, tokens: int, repeats: int) -> tuple[float, float]:
        """Tokens a second of reading a prompt of so many, likewise."""
        prompt = prose_ids(self._loaded, tokens)
        ours: list[float] = []
        theirs: list[list[float]] = [[] for _ in self._servers]
        for _ in range(repeats):
            kv = self._engine.new_kv()
            ours.append(tokens / answer(self._engine, kv, prompt, 1).finished.prefill_s)
            self._engine.release(kv)
            for server, speeds in zip(self._servers, theirs, strict=True):
                found = server.timings(prompt, 1, keeps=False)
                assert found["prompt_n"] >= tokens - 1, found
                speeds.append(found["prompt_per_second"])
        return median(ours), max(map(median, theirs))


@contextlib.contextmanager
def opened(
    python: str, gguf: Path, model: str, options: argparse.Namespace, memory: dict[str, float]
) -> Iterator[Duel]:
    """Loads the file here and there. Puts the weights' bytes and the peak of memory while loading into `memory`."""
    config = ModelConfig(model=model, quantization="shipped", device="cpu", cpu_activations=options.activations)
    for _ in range(2):  # the second time from the cache of converted models, as at every start but the first
        before = _status("VmRSS")
        _forget_peak()
        loaded = in_passing_thread(lambda: load_model(config, say=lambda line: print(f"# {line}")))
        memory["peak"], memory["weights"] = _status("VmHWM") - before, loaded.weights_bytes
        if memory.setdefault("loads", 0) == 0:
            memory["loads"] = 1
            unload(loaded)
    loaded = replace(loaded, stop_token_ids=frozenset())
    engine = start(loaded, CONTEXT_TOKENS)
    servers = [LlamaServer(python, gguf, options.threads, flash) for flash in ("on", "off")]
    print(f"# llama.cpp: {servers[0].built_for}\n# Keepwarm: {engine.info.quantization}, {engine.info.kernel}")
    try:
        yield Duel(engine, loaded, servers)
    finally:
        for server in servers:
            server.close()
        engine.close()
        unload(loaded)


def _status(name: str) -> int:
    """Bytes of the process's memory, as the kernel counts them."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-python", default=os.environ.get("KEEPWARM_LLAMA_PYTHON", ""))
    parser.add_argument("--shapes", nargs="+", default=[EMBEDDED, *SHAPES], choices=[EMBEDDED, *SHAPES])
    parser.add_argument("--formats", nargs="+", default=["q4_0", "q4_k_m", "q8_0"], choices=list(FORMATS))
    parser.add_argument("--activations", default="auto", choices=("auto", "int8", "float32"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--histories", type=int, nargs="+", default=[0, 2000, 6000])
    parser.add_argument("--read", type=int, default=2000)
    parser.add_argument("--files", type=Path, default=Path("build/llama/models"))
    options = parser.parse_args()
    if not options.llama_python:
        raise SystemExit("Name a Python that has xllamacpp: --llama-python, or KEEPWARM_LLAMA_PYTHON.")
    torch.set_num_threads(options.threads)
    own = embedded_gguf(default_cache_dir(), print)
    figures: dict[str, float] = {}
    for shape in options.shapes:
        for kind in ["q4_1"] if shape == EMBEDDED else options.formats:
            gguf, model = own, EMBEDDED
            if shape != EMBEDDED:
                options.files.mkdir(parents=True, exist_ok=True)
                gguf = options.files / f"{shape}-{kind}.gguf"
                model = str(gguf)
                if not gguf.exists():
                    write_model(SHAPES[shape], FORMATS[kind], own, gguf)
            figures |= _figures(f"{shape}_{kind}", gguf, model, options)
    finish("against_llamacpp", figures, device_name("cpu"), " ".join(options.shapes))


def _figures(name: str, gguf: Path, model: str, options: argparse.Namespace) -> dict[str, float]:
    figures = dict[str, float]()
    rows: list[tuple[str, float, float, float]] = []
    memory: dict[str, float] = {}
    with opened(options.llama_python, gguf, model, options, memory) as duel:
        for tokens in options.histories:
            ours, theirs = duel.decode(tokens, options.tokens, options.repeats)
            print(f"# {name}, decoding at {tokens:,}: {ours:.3g} against {theirs:.3g} tokens a second", flush=True)
            rows.append((f"decoding at {tokens:,}", ours, theirs, ours / theirs))
            figures[f"decode_ratio_{tokens}_{name}"] = ours / theirs
        ours, theirs = duel.read(options.read, min(3, options.repeats))
        rows.append((f"reading {options.read:,}", ours, theirs, ours / theirs))
        figures[f"read_ratio_{options.read}_{name}"] = ours / theirs
    figures[f"weights_bytes_over_file_{name}"] = memory["weights"] / gguf.stat().st_size
    figures[f"peak_rss_over_weights_{name}"] = memory["peak"] / memory["weights"]
    table((name, "ours tok/s", "llama.cpp tok/s", "ratio"), rows)
    return figures


if __name__ == "__main__":
    main()
