"""Drives the real engine from a benchmark: one answer at a time, token ids in, `Finished` out."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

from model_runtime.engine.engine import LocalEngine
from model_runtime.engine.passing_thread import in_passing_thread
from model_runtime.interface.config import EngineConfig, ModelConfig
from model_runtime.interface.events import Event, Finished, TokenDelta
from model_runtime.interface.protocol import KV, GenerationRequest
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.loading.loaded import LoadedModel
from model_runtime.loading.loading import load_model

# Prose, so that the model reads text and not noise; repeated as often as a history needs.
_PROSE = (
    "A cache is a promise about time: what was worked out once need not be worked out again. A person who talks with a "
    "model over many turns reads the whole conversation only once, and so should the model. The keys and values of "
    "every token that was read are kept, and the next turn begins where the last one ended. Memory is finite, so what "
    "is kept must be worth its room, and what was dropped must be found again by reading. "
)


@dataclass(frozen=True, slots=True)
class Answer:
    """One generation's outcome."""

    finished: Finished
    token_ids: tuple[int, ...]


def load(model: str = "embedded", quantization: str = "auto") -> LoadedModel:
    """Loads a model without stop tokens, so that every answer has the requested length."""
    config = ModelConfig(model=model, quantization=quantization)  # type: ignore[arg-type]
    loaded = in_passing_thread(lambda: load_model(config, say=lambda line: print(f"# {line}")))
    return replace(loaded, stop_token_ids=frozenset())


def start(loaded: LoadedModel, context_limit_tokens: int) -> LocalEngine:
    """An engine without prompt lookup: our histories repeat themselves, which would flatter every figure."""
    return in_passing_thread(lambda: LocalEngine(loaded, EngineConfig(prompt_lookup="off"), context_limit_tokens))


def answer(
    engine: LocalEngine, kv: KV, ledger: Sequence[int], new_tokens: int, sampling: SamplingParams | None = None
) -> Answer:
    """Runs one answer of `new_tokens` tokens to its end, greedy by default."""
    done = threading.Event()
    events: list[Event] = []

    def listen(event: Event) -> None:
        events.append(event)
        if isinstance(event, Finished):
            done.set()

    sampling = replace(sampling or SamplingParams(temperature=0), max_new_tokens=new_tokens)
    engine.submit(GenerationRequest(tuple(ledger), kv, sampling), listen)
    done.wait()
    finished = events[-1]
    assert isinstance(finished, Finished)
    if finished.error:
        raise SystemExit(finished.error)
    return Answer(finished, tuple(e.token_id for e in events if isinstance(e, TokenDelta)))


def prose_ids(loaded: LoadedModel, tokens: int) -> list[int]:
    """`tokens` ids of English prose."""
    ids = loaded.tokenizer(_PROSE, add_special_tokens=False)["input_ids"]
    return (ids * (tokens // len(ids) + 1))[:tokens]
