"""An engine over a real (tiny or embedded) model, with what tests need to see of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from model_runtime.engine.engine import LocalEngine
from model_runtime.forward.transformers_forward import Feed
from model_runtime.interface.config import EngineConfig
from model_runtime.interface.events import Event, Finished, TokenDelta
from model_runtime.interface.protocol import GenerationRequest
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.loading.loaded import LoadedModel
from tests.model_runtime import tiny_models
from tests.model_runtime.tiny_classic import TINY_CLASSIC
from tests.polling import until

TINY = {
    "llama": tiny_models.tiny_llama,
    "qwen3": tiny_models.tiny_qwen3,
    "gemma3": tiny_models.tiny_gemma3,
    "gptbigcode": tiny_models.tiny_gptbigcode,
    **{name: TINY_CLASSIC[name] for name in ("bloom", "falcon-alibi", "gptj", "mpt")},
}
GREEDY = SamplingParams(temperature=0, max_new_tokens=12)


def loaded_tiny(directory: Path) -> LoadedModel:
    """A tiny checkpoint in float32 with transformers' own attention, as it was saved. It never stops by itself: a
    random model's stop token comes at random, and a test wants to know its lengths."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        name=directory.name,
        quantization="none",
        stop_token_ids=frozenset(),
        default_sampling=GREEDY,
        kv_dtype=torch.float32,
        weights_bytes=sum(p.nbytes for p in model.parameters()),
        fingerprint=directory.name,
        tokenizer_fingerprint="tiny",
    )


@dataclass
class Answer:
    """A running generation and all it emitted."""

    ledger: tuple[int, ...]
    abort: Callable[[], None] = lambda: None
    events: list[Event] = field(default_factory=list)
    _done: threading.Event = field(default_factory=threading.Event)

    def heard(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Finished):
            self._done.set()

    def wait(self) -> Finished:
        assert self._done.wait(60), "the generation did not finish"
        finished = self.events[-1]
        assert isinstance(finished, Finished)
        return finished

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(e.token_id for e in self.events if isinstance(e, TokenDelta))

    @property
    def text(self) -> str:
        return "".join(e.text for e in self.events if isinstance(e, TokenDelta))


class WatchedEngine:
    """A real engine whose model input and logits are recorded where they pass: `fed` counts the ids that reach the
    embedding, `logits` are those of every sampled position, keyed by the token ids before it."""

    def __init__(
        self, loaded: LoadedModel, config: EngineConfig | None = None, context_limit_tokens: int = 512
    ) -> None:
        self.fed = 0
        self.logits: dict[tuple[int, ...], torch.Tensor] = {}
        self.tokenizer = loaded.tokenizer.backend_tokenizer
        self.engine = LocalEngine(loaded, config or EngineConfig(prefill_chunk_tokens=32), context_limit_tokens)
        self._hook = loaded.model.get_input_embeddings().register_forward_pre_hook(self._count)
        self._run = self.engine.runtime.forward.run
        self.engine.runtime.forward.run = self._record  # type: ignore[method-assign]

    def _count(self, module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        self.fed += arguments[0].numel()

    def _record(self, feeds: Sequence[Feed], abort_if: Callable[[], bool] = lambda: False) -> torch.Tensor:
        logits = self._run(feeds, abort_if)
        rows = iter(logits)
        for feed in feeds:
            end = len(feed.slab.token_ids)
            for row in range(end - feed.logit_rows + 1, end + 1):
                self.logits[tuple(feed.slab.token_ids[:row])] = next(rows).clone()
        return logits

    def submit(self, kv: object, ledger: Sequence[int], sampling: SamplingParams = GREEDY, prefix: int = 0) -> Answer:
        answer = Answer(tuple(ledger))
        request = GenerationRequest(tuple(ledger), kv, sampling, prefix)  # type: ignore[arg-type]
        answer.abort = self.engine.submit(request, answer.heard).abort
        return answer

    def rest(self) -> None:
        """Until the engine has nothing to do any more: after the last event its thread still ends the step."""
        until(lambda: self.engine.pulse().busy_s == 0, 60.0, 0.0005)

    def close(self) -> None:
        self.engine.close()
        self._hook.remove()


@torch.inference_mode()
def full_read(model: torch.nn.Module, ledger: Sequence[int]) -> torch.Tensor:
    """Logits `(tokens, vocabulary)` of one uncached read through the model's own attention."""
    return (
        model(torch.tensor([list(ledger)], device=next(model.parameters()).device), use_cache=False).logits[0].float()
    )
