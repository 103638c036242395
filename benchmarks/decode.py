"""How fast does an answer stream, and does history slow it down?

Tokens per second at 0, 2,000 and 6,000 tokens of history: ours, and a plain loop over transformers' `DynamicCache` with
the same weights de-quantised to float32. Both alternate, because a shared machine drifts. Also measured: how fast 2,000
tokens are read, and the speed of the machine in the same run, as a float32 matrix times a vector (bytes per second) and
times a matrix (operations per second).

    python -m benchmarks.decode [--model embedded] [--tokens 48] [--repeats 5]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from transformers import DynamicCache

from benchmarks.driver import answer, load, prose_ids, start
from benchmarks.report import device_name, finish, median, table
from model_runtime.engine.engine import LocalEngine
from model_runtime.loading.loaded import LoadedModel
from model_runtime.loading.loading import unload

HISTORIES = (0, 2000, 6000)
FIRST_TOKENS = 8  # "no history" still needs a few tokens to start from
CHUNK_TOKENS = 512
READ_TOKENS = 2000


class DynamicCacheLoop:
    """The simplest loop with transformers: feed the last token, take the best next one."""

    def __init__(self, loaded: LoadedModel, history: list[int]) -> None:
        self._model = loaded.model
        self._cache = DynamicCache()
        self._last = history[-1]
        for begin in range(0, len(history) - 1, CHUNK_TOKENS):
            self._feed(history[begin : min(begin + CHUNK_TOKENS, len(history) - 1)])
        self._length = len(history) - 1

    @torch.inference_mode()
    def _feed(self, ids: list[int]) -> int:
        tokens = torch.tensor([ids], device=self._model.device)
        logits = self._model(tokens, past_key_values=self._cache, use_cache=True, logits_to_keep=1).logits
        return int(logits[0, -1].argmax())

    def tokens_per_s(self, tokens: int) -> float:
        """The speed of `tokens` steps; the cache is cropped back to the history afterwards."""
        token = self._feed([self._last])
        begin = time.perf_counter()
        for _ in range(tokens - 1):
            token = self._feed([token])
        seconds = time.perf_counter() - begin
        self._cache.crop(self._length - self._cache.get_seq_length())
        return (tokens - 1) / seconds


def prefill_tok_s(engine: LocalEngine, loaded: LoadedModel) -> float:
    """Tokens per second of reading a prompt of `READ_TOKENS` up to its first answer token."""
    kv = engine.new_kv()
    found = answer(engine, kv, prose_ids(loaded, READ_TOKENS), 1).finished
    engine.release(kv)
    return READ_TOKENS / found.prefill_s


def gbytes_s() -> float:
    """Gigabytes per second of a matrix-vector product that is too large for any cache."""
    matrix, vector = torch.ones(16_384, 4096), torch.ones(4096)
    return matrix.nbytes / _fastest_s(lambda: matrix @ vector) / 1e9


def gflops() -> float:
    """Billions of operations per second of a matrix product."""
    matrix = torch.ones(1536, 1536)
    return 2 * 1536**3 / _fastest_s(lambda: matrix @ matrix) / 1e9


def _fastest_s(work: Callable[[], object]) -> float:
    times_s = []
    for _ in range(5):
        begin = time.perf_counter()
        work()
        times_s.append(time.perf_counter() - begin)
    return min(times_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    plain = load(options.model, "none")
    loaded = load(options.model)
    engine = start(loaded, max(HISTORIES) + 512)
    rows, figures = [], {}
    box_gbytes: list[float] = []
    box_gflops: list[float] = []
    for length in HISTORIES:
        history = prose_ids(loaded, max(length, FIRST_TOKENS))
        loop = engine.call(partial(DynamicCacheLoop, plain, history))
        kv = engine.new_kv()
        answer(engine, kv, history, 2)
        ours, theirs = [], []
        for _ in range(options.repeats):
            found = answer(engine, kv, history, options.tokens).finished
            ours.append((found.sampled_tokens - 1) / found.decode_s)
            theirs.append(engine.call(partial(loop.tokens_per_s, options.tokens)))
        engine.release(kv)
        box_gbytes.append(engine.call(gbytes_s))
        box_gflops.append(engine.call(gflops))
        rows.append((f"{length:,}", median(ours), median(theirs), median(ours) / median(theirs)))
        figures[f"tok_s_{length}"] = median(ours)
        figures[f"vs_dynamiccache_at_{length}"] = median(ours) / median(theirs)
    figures["prefill_tok_s_2000"] = median([prefill_tok_s(engine, loaded) for _ in range(options.repeats)])
    figures["box_gbytes_s"], figures["box_gflops"] = median(box_gbytes), median(box_gflops)
    engine.close()
    table(("history", "ours tok/s", "DynamicCache tok/s", "ratio"), rows)
    print(
        f"reading {READ_TOKENS:,} tokens: {figures['prefill_tok_s_2000']:,.0f} a second; the machine: "
        f"{figures['box_gbytes_s']:.1f} GB/s, {figures['box_gflops']:.0f} GFLOP/s\n"
    )
    finish("decode", figures, device_name(str(loaded.model.device)), f"{loaded.name}, {loaded.quantization}")
    unload(plain)
    unload(loaded)


if __name__ == "__main__":
    main()
