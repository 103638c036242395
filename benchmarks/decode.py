"""How fast does an answer stream, and does history slow it down?

Tokens a second at 0, 2,000 and 6,000 tokens of history: ours, and a plain loop over transformers' `DynamicCache` with
the same weights de-quantised to float32. Both take turns, because a shared machine drifts.

    python -m benchmarks.decode [--model embedded] [--tokens 48] [--repeats 5]
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import torch
from transformers import DynamicCache

from benchmarks.driver import answer, load, on_engine_thread, prose_ids, start
from benchmarks.report import device_name, finish, median, table
from model_runtime.loaded import LoadedModel
from model_runtime.loading import unload

HISTORIES = (0, 2000, 6000)
FIRST_TOKENS = 8  # "no history" still needs something to go on from
CHUNK_TOKENS = 512


class DynamicCacheLoop:
    """What one writes first with transformers: feed the last token, take the best next one."""

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
    for length in HISTORIES:
        history = prose_ids(loaded, max(length, FIRST_TOKENS))
        loop = on_engine_thread(engine, partial(DynamicCacheLoop, plain, history))
        kv = engine.new_kv()
        answer(engine, kv, history, 2)
        ours, theirs = [], []
        for _ in range(options.repeats):
            found = answer(engine, kv, history, options.tokens).finished
            ours.append((found.sampled_tokens - 1) / found.decode_s)
            theirs.append(on_engine_thread(engine, partial(loop.tokens_per_s, options.tokens)))
        engine.release(kv)
        rows.append((f"{length:,}", median(ours), median(theirs), median(ours) / median(theirs)))
        figures[f"tok_s_{length}"] = median(ours)
        figures[f"vs_dynamiccache_at_{length}"] = median(ours) / median(theirs)
    engine.close()
    table(("history", "ours tok/s", "DynamicCache tok/s", "ratio"), rows)
    finish("decode", figures, device_name(str(loaded.model.device)), f"{loaded.name}, {loaded.quantization}")
    unload(plain)
    unload(loaded)


if __name__ == "__main__":
    main()
