"""Keepwarm's half of a comparison: loads a model as `serve` does, and records what it feeds, answers and computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PretrainedConfig

from model_runtime.engine.passing_thread import in_passing_thread
from model_runtime.forward.cpu_activations import has_integer_activations
from model_runtime.interface.config import EngineConfig, KvDtype, ModelConfig
from model_runtime.interface.events import FinishReason
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.loading.loaded import LoadedModel
from model_runtime.loading.loading import context_limit_tokens, load_model, unload
from model_runtime.reference.boundaries import boundaries_of
from model_runtime.reference.recorded_engine import RecordedEngine
from model_runtime.reference.turns import GREEDY_TOKENS, QUESTIONS, SECOND, Reading, TurnIds, readings_of, turns_of
from model_runtime.text.chat_template import ChatTemplate
from model_runtime.weights.native_experts import NativeExperts
from model_runtime.weights.native_matrix import Kind, NativeEmbedding, NativeLinear

Say = Callable[[str], None]
_GREEDY = SamplingParams(temperature=0, max_new_tokens=GREEDY_TOKENS)


@dataclass(frozen=True, slots=True)
class Said:
    """One answer: the ids before it, its greedy tokens, and the logits `(tokens, vocabulary)` of each. `error` is the
    engine's sentence when it gave none."""

    what: str
    ledger: tuple[int, ...]
    sampled: tuple[int, ...]
    logits: torch.Tensor
    error: str | None


@dataclass(frozen=True, slots=True)
class KeepwarmSide:
    """Everything that the comparison needs once the model is gone. `is_float32`: neither weights nor KV are rounded.
    `has_float16_kv`: its rows are rounded, and nothing else that it computes.
    `nf4_experts` are the layers whose experts it quantised. `is_preset`: a person chose the template instead of the
    tokenizer's."""

    name: str
    sentence: str
    device: str
    dtype: torch.dtype
    is_float32: bool
    has_float16_kv: bool
    has_integer_activations: bool
    quantization_config: Any
    nf4_experts: tuple[str, ...]
    config: PretrainedConfig
    chat_template: str | dict[str, str]
    is_preset: bool
    turns: tuple[TurnIds, ...]
    said: tuple[Said, ...]
    left_out: tuple[str, ...]


def run_keepwarm(
    config: ModelConfig, own_config: PretrainedConfig | None, most_tokens: int, say: Say, kv_dtype: KvDtype = "auto"
) -> KeepwarmSide:
    """Loads the model, answers, and frees it again. `own_config` is what transformers reads by itself: a boundary that
    Keepwarm lost is still one. Raises `ModelRuntimeError` with Keepwarm's own sentence when it refuses the model."""
    loaded = in_passing_thread(lambda: load_model(config, say))
    try:
        limit_tokens = context_limit_tokens(loaded, config.context_limit_tokens)
        template = in_passing_thread(lambda: ChatTemplate(loaded.tokenizer, loaded.stop_token_ids))
        is_exact = _has_float32_weights(loaded)
        quantization = getattr(loaded.model.config, "quantization_config", None)
        # A model that stops at its first token would leave nothing to compare.
        endless = replace(loaded, stop_token_ids=frozenset(), stop_strings=())
        settings = EngineConfig(prompt_lookup="off", kv_dtype=kv_dtype)
        recorded = in_passing_thread(lambda: RecordedEngine(endless, settings, limit_tokens))
        try:
            readings, left_out = readings_of(
                loaded.tokenizer,
                template.first_turn("", QUESTIONS[0]),
                template.next_turn(False, SECOND),
                boundaries_of(*filter(None, (own_config, loaded.model.config))),
                min(most_tokens, limit_tokens),
            )
            info, row_dtype = recorded.engine.info, recorded.engine.runtime.geometry.dtype
            return KeepwarmSide(
                name=loaded.name,
                sentence=f"{info.quantization}, {info.kernel}, on {info.device}",
                device=info.device,
                dtype=loaded.kv_dtype,
                is_float32=is_exact and row_dtype == torch.float32,
                has_float16_kv=loaded.kv_dtype == torch.float32 and row_dtype == torch.float16,
                has_integer_activations=has_integer_activations(loaded.model),
                quantization_config=quantization,
                nf4_experts=tuple(_experts(loaded)) if getattr(quantization, "load_in_4bit", False) else (),
                config=loaded.model.config,
                chat_template=loaded.tokenizer.chat_template,
                is_preset=getattr(config, "chat_preset", None) is not None,
                turns=tuple(turns_of(template)),
                said=tuple(_answers(recorded, readings)),
                left_out=tuple(left_out),
            )
        finally:
            recorded.close()
    finally:
        unload(loaded)


def _answers(recorded: RecordedEngine, readings: Sequence[Reading]) -> list[Said]:
    """Both answers of every reading. All first answers share their steps, then all second ones: as conversations do."""
    kvs = [recorded.engine.new_kv() for _ in readings]
    first = _answered(recorded, kvs, [(reading.what, reading.ledger) for reading in readings])
    ledgers = [
        (reading.then, (*said.ledger, *said.sampled, *reading.more))
        for reading, said in zip(readings, first, strict=True)
    ]
    second = _answered(recorded, kvs, ledgers)
    for kv in kvs:
        recorded.engine.release(kv)
    return [said for pair in zip(first, second, strict=True) for said in pair]


def _answered(
    recorded: RecordedEngine, kvs: Sequence[Any], ledgers: Sequence[tuple[str, tuple[int, ...]]]
) -> list[Said]:
    answers = [recorded.submit(kv, ledger, _GREEDY) for kv, (_, ledger) in zip(kvs, ledgers, strict=True)]
    found: list[Said] = []
    for answer, (what, ledger) in zip(answers, ledgers, strict=True):
        finished = answer.wait(None)
        sampled = answer.token_ids
        ids = (*ledger, *sampled)
        rows = [recorded.logits[ids[:end]] for end in range(len(ledger), len(ids))]
        error = finished.error if finished.reason is FinishReason.FAILED else None
        found.append(Said(what, ledger, sampled, torch.stack(rows) if rows else torch.empty(0), error))
    recorded.logits.clear()
    return found


def _experts(loaded: LoadedModel) -> Iterator[str]:
    return (name for name, module in loaded.model.named_modules() if isinstance(module, NativeExperts))


def _has_float32_weights(loaded: LoadedModel) -> bool:
    tensors = [*loaded.model.parameters(), *loaded.model.buffers()]
    is_float32 = all(t.dtype == torch.float32 for t in tensors if t.is_floating_point())
    has_codes = any(t.dtype in (torch.uint8, torch.int8) for t in tensors)
    return is_float32 and not has_codes and not any(_has_hidden_codes(module) for module in loaded.model.modules())


def _has_hidden_codes(module: torch.nn.Module) -> bool:
    """Whether a layer has weights of few bits where torch does not see them."""
    if isinstance(module, (NativeLinear, NativeEmbedding)):
        return module.matrix is not None and module.matrix.kind < Kind.HALF
    return bool(getattr(module, "hidden_bytes", 0))
