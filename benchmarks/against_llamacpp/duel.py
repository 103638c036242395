"""One model here and in llama.cpp, measured in turns."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.against_llamacpp.llama_cpp_side import LlamaCpp
from benchmarks.against_llamacpp.memory import forget_peak, peak_bytes, resident_bytes
from benchmarks.against_llamacpp.models import Match
from benchmarks.driver import answer, prose_ids, start
from benchmarks.report import median
from model_runtime.engine.engine import LocalEngine
from model_runtime.engine.passing_thread import in_passing_thread
from model_runtime.interface.config import CpuActivations, ModelConfig
from model_runtime.interface.protocol import KV
from model_runtime.loading.loaded import LoadedModel
from model_runtime.loading.loading import load_model, unload
from model_runtime.native import heap

FIRST_TOKENS = 8  # "no history" still needs a few tokens to start from
_CLEARLY = 1.1  # flash attention that is so much slower than none at one history is left out at the next


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured: tokens of an answer, of each history, of the prompt that is read, and how often. Histories that
    llama.cpp read untimed are `kept_in` a folder."""

    tokens: int
    histories: Sequence[int]
    read: int
    repeats: int
    reads: int
    kept_in: Path

    @property
    def context_tokens(self) -> int:
        """Room for the longest history and its answer."""
        return max(*self.histories, self.read, FIRST_TOKENS) + self.tokens + 256


@dataclass(slots=True)
class Found:
    """Tokens a second, here and there, of what `what` says; bytes of memory."""

    speeds: dict[str, tuple[float, float]] = field(default_factory=dict)
    weights_bytes: int = 0
    peak_bytes: int = 0
    resident_bytes: int = 0
    their_resident_bytes: int = 0


class Duel:
    """`loaded` here, and llama.cpp with and without flash attention: the better one counts."""

    def __init__(self, loaded: LoadedModel, engine: LocalEngine, others: list[LlamaCpp], sizes: Sizes) -> None:
        self._loaded, self._engine, self._others, self._sizes = loaded, engine, others, sizes

    def measure(self, found: Found) -> Iterator[str]:
        """Puts speeds into `found`, and yields the name of each."""
        sizes, kv, kept = self._sizes, self._engine.new_kv(), 0
        for history in sorted({*sizes.histories, sizes.read}):
            prompt = prose_ids(self._loaded, max(history, FIRST_TOKENS))
            if history == sizes.read:
                self._engine.release(kv)
                kv, found.speeds[f"read_{history}"] = self._read(prompt)
                found.resident_bytes = resident_bytes()
                found.their_resident_bytes = min(other.resident_bytes() for other in self._others)
                yield f"read_{history}"
            else:
                answer(self._engine, kv, prompt, 1)
                for other in self._others:
                    other.recall(prompt, kept, self._sizes.kept_in)
            kept = len(prompt)
            if history in sizes.histories:
                found.speeds[f"decode_{history}"] = self._decode(kv, prompt)
                yield f"decode_{history}"
        self._engine.release(kv)

    def _read(self, prompt: list[int]) -> tuple[KV, tuple[float, float]]:
        """A KV that holds the prompt, and tokens a second of reading it."""
        ours: list[float] = []
        theirs: list[list[float]] = [[] for _ in self._others]
        kv = self._engine.new_kv()
        for _ in range(self._sizes.reads):
            self._engine.release(kv)
            kv = self._engine.new_kv()
            ours.append(len(prompt) / answer(self._engine, kv, prompt, 1).finished.prefill_s)
            for other, speeds in zip(self._others, theirs, strict=True):
                speeds.append(len(prompt) / other.read_s(prompt))
        return kv, (median(ours), max(map(median, theirs)))

    def _decode(self, kv: KV, prompt: list[int]) -> tuple[float, float]:
        tokens = self._sizes.tokens
        ours: list[float] = []
        theirs: list[list[float]] = [[] for _ in self._others]
        for _ in range(self._sizes.repeats):
            ended = answer(self._engine, kv, prompt, tokens + 1).finished
            ours.append((ended.sampled_tokens - 1) / ended.decode_s)
            for other, speeds in zip(self._others, theirs, strict=True):
                speeds.append(tokens / other.decode_s(tokens))
        medians = [median(speeds) for speeds in theirs]
        best = max(medians)
        for other, speed in list(zip(self._others, medians, strict=True)):
            if speed * _CLEARLY < best:
                other.close()
                self._others.remove(other)
        return median(ours), best


@contextlib.contextmanager
def opened(
    python: str, match: Match, activations: CpuActivations, threads: int, sizes: Sizes, found: Found
) -> Iterator[Duel]:
    """Loads the model here and there. The memory of loading it here is put into `found`."""
    config = match.config(activations)
    loaded, said = _loaded(config, found)
    if any(
        "(once)" in line for line in said
    ):  # converted: the second time from the cache, as at every start but the first
        unload(loaded)
        loaded, _ = _loaded(config, found)
    loaded = replace(loaded, stop_token_ids=frozenset(), stop_strings=())
    engine = start(loaded, sizes.context_tokens)
    others = [LlamaCpp(python, match.gguf, threads, sizes.context_tokens, flash) for flash in ("on", "off")]
    print(f"# llama.cpp: {others[0].built_for}\n# Keepwarm: {engine.info.quantization}, {engine.info.kernel}")
    try:
        yield Duel(loaded, engine, others, sizes)
    finally:
        for other in others:
            other.close()
        engine.close()
        unload(loaded)


def _loaded(config: ModelConfig, found: Found) -> tuple[LoadedModel, list[str]]:
    """The model, and what was said while it was loaded."""
    said = list[str]()
    gc.collect()
    heap.give_back()  # what the model before has left would be taken for this one's
    before = resident_bytes()
    forget_peak()
    loaded = in_passing_thread(lambda: load_model(config, say=said.append))
    found.peak_bytes, found.weights_bytes = peak_bytes() - before, loaded.weights_bytes
    return loaded, said
