"""An engine whose logits are recorded where they leave its forward."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from model_runtime.engine.engine import LocalEngine
from model_runtime.forward.transformers_forward import Feed
from model_runtime.interface.config import EngineConfig
from model_runtime.interface.events import Event, Finished, TokenDelta
from model_runtime.interface.protocol import KV, GenerationRequest
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.loading.loaded import LoadedModel


@dataclass
class Answer:
    """A running generation and everything it emitted."""

    ledger: tuple[int, ...]
    abort: Callable[[], None] = lambda: None
    events: list[Event] = field(default_factory=list)
    _done: threading.Event = field(default_factory=threading.Event)

    def heard(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Finished):
            self._done.set()

    def wait(self, timeout_s: float | None = 60.0) -> Finished:
        assert self._done.wait(timeout_s), "the generation did not finish"
        finished = self.events[-1]
        assert isinstance(finished, Finished)
        return finished

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(e.token_id for e in self.events if isinstance(e, TokenDelta))

    @property
    def text(self) -> str:
        return "".join(e.text for e in self.events if isinstance(e, TokenDelta))


class RecordedEngine:
    """A real engine. `logits` are those of every sampled position, keyed by the token ids before it: float32
    `(vocabulary,)` in host memory."""

    def __init__(self, loaded: LoadedModel, config: EngineConfig, context_limit_tokens: int) -> None:
        self.logits: dict[tuple[int, ...], torch.Tensor] = {}
        self.tokenizer = loaded.tokenizer.backend_tokenizer
        self.engine = LocalEngine(loaded, config, context_limit_tokens)
        self._run = self.engine.runtime.forward.run
        self.engine.runtime.forward.run = self._record  # type: ignore[method-assign]

    def _record(self, feeds: Sequence[Feed], abort_if: Callable[[], bool] = lambda: False) -> torch.Tensor:
        logits = self._run(feeds, abort_if)
        rows = iter(logits)
        for feed in feeds:
            end = len(feed.slab.token_ids)
            for row in range(end - feed.logit_rows + 1, end + 1):
                self.logits[tuple(feed.slab.token_ids[:row])] = next(rows).to("cpu", copy=True)
        return logits

    def submit(self, kv: KV, ledger: Sequence[int], sampling: SamplingParams, prefix: int = 0) -> Answer:
        """Begins an answer behind `ledger`, of which the last `prefix` ids already belong to it."""
        answer = Answer(tuple(ledger))
        request = GenerationRequest(tuple(ledger), kv, sampling, prefix)
        answer.abort = self.engine.submit(request, answer.heard).abort
        return answer

    def close(self) -> None:
        self.engine.close()
