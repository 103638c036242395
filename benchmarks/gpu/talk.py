"""Drives the real engine with token ids and records timed token ids, many answers at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

from benchmarks.gpu.bench import Bench
from model_runtime.engine.engine import LocalEngine
from model_runtime.interface.config import EngineConfig
from model_runtime.interface.events import Event, Finished, TokenDelta
from model_runtime.interface.protocol import KV, GenerationRequest
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.loading.loaded import LoadedModel

GREEDY = SamplingParams(temperature=0)
SAMPLED = SamplingParams(temperature=0.7, top_k=50, top_p=0.9, repetition_penalty=1.1, seed=1)


@dataclass
class Answer:
    """A running generation: when it was submitted, its ids and the time of each."""

    asked_at: float = field(default_factory=time.perf_counter)
    token_ids: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    finished: Finished | None = None
    _done: threading.Event = field(default_factory=threading.Event)

    def heard(self, event: Event) -> None:
        if isinstance(event, TokenDelta):
            self.times.append(time.perf_counter())
            self.token_ids.append(event.token_id)
        elif isinstance(event, Finished):
            self.finished = event
            self._done.set()

    def wait(self, timeout_s: float = 180.0) -> Answer:
        if not self._done.wait(timeout_s):
            raise TimeoutError(f"no answer within {timeout_s} s")
        if self.finished is None or self.finished.error:
            raise RuntimeError(str(self.finished and self.finished.error))
        return self

    @property
    def ttft_s(self) -> float:
        return self.times[0] - self.asked_at

    @property
    def fed_tokens(self) -> int:
        assert self.finished is not None
        return self.finished.fed_tokens


def open_engine(
    bench: Bench,
    loaded: LoadedModel,
    context_tokens: int,
    arena_tokens: int,
    max_concurrent: int = 8,
    pinned_bytes: int = 0,
    record: bool = True,
) -> LocalEngine:
    """An engine over an arena for `arena_tokens` tokens, without prompt lookup, which random weights make useless."""
    own = loaded.model.config.get_text_config()
    heads = getattr(own, "num_key_value_heads", None) or 1
    if getattr(own, "multi_query", False):
        heads = 1
    dim = getattr(own, "head_dim", None) or own.hidden_size // own.num_attention_heads
    bytes_per_token = 2 * own.num_hidden_layers * heads * dim * loaded.kv_dtype.itemsize
    settings = {
        "kv_arena_bytes": arena_tokens * bytes_per_token,
        "max_concurrent": max_concurrent,
        "pinned_host_bytes": pinned_bytes,
        "record_steps": record,
        "prompt_lookup": "off",
        "prefill_chunk_tokens": 2048 if bench.device.type == "cuda" else 128,
    }
    known = {each.name for each in fields(EngineConfig)}
    return LocalEngine(loaded, EngineConfig(**{k: v for k, v in settings.items() if k in known}), context_tokens)


def ask(
    engine: LocalEngine, kv: KV, ledger: Sequence[int], new_tokens: int, sampling: SamplingParams = GREEDY
) -> Answer:
    """Submits an answer of `new_tokens` tokens."""
    answer = Answer()
    sampling = replace(sampling, max_new_tokens=new_tokens)
    engine.submit(GenerationRequest(tuple(ledger), kv, sampling), answer.heard)
    return answer


def some_ids(loaded: LoadedModel, tokens: int, seed: int = 1) -> list[int]:
    """Ids without repetitions close to each other."""
    vocabulary = int(loaded.model.config.get_text_config().vocab_size)
    return [(seed * 7919 + 104729 * place + place * place) % vocabulary for place in range(tokens)]
