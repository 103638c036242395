"""An engine over a real (tiny or embedded) model, with what tests need to see of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from model_runtime.interface.config import EngineConfig
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.loading.loaded import LoadedModel
from model_runtime.reference.full_read import full_read
from model_runtime.reference.recorded_engine import Answer, RecordedEngine
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
# One of each kind of attention; the others take a minute.
SOME_FAMILIES = [
    name if name in ("llama", "gemma3", "gptbigcode", "bloom") else pytest.param(name, marks=pytest.mark.long)
    for name in sorted(TINY)
]
__all__ = ["GREEDY", "SOME_FAMILIES", "TINY", "Answer", "WatchedEngine", "full_read", "loaded_tiny"]
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


class WatchedEngine(RecordedEngine):
    """A recorded engine that also counts: `fed` are the ids that reach the embedding."""

    def __init__(
        self, loaded: LoadedModel, config: EngineConfig | None = None, context_limit_tokens: int = 512
    ) -> None:
        super().__init__(loaded, config or EngineConfig(prefill_chunk_tokens=32), context_limit_tokens)
        self.fed = 0
        self._hook = loaded.model.get_input_embeddings().register_forward_pre_hook(self._count)

    def _count(self, module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        self.fed += arguments[0].numel()

    def submit(self, kv: object, ledger: Sequence[int], sampling: SamplingParams = GREEDY, prefix: int = 0) -> Answer:
        return super().submit(kv, ledger, sampling, prefix)  # type: ignore[arg-type]

    def rest(self) -> None:
        """Until the engine has nothing to do any more: after the last event its thread still ends the step."""
        until(lambda: self.engine.pulse().busy_s == 0, 60.0, 0.0005)

    def close(self) -> None:
        super().close()
        self._hook.remove()
