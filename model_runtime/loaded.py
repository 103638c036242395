"""A loaded model, as the engine takes it: weights, tokenizer, and what is to be said about them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from model_runtime.types import SamplingParams


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """`model` is in eval mode on its device; `kv_dtype` is the dtype its attention layers see. `fingerprint` names the
    weights, their quantization and dtype and the RoPE settings. `notes` are sentences for the start-up lines: what was
    chosen, what is degraded and why."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    name: str
    quantization: str
    stop_token_ids: frozenset[int]
    default_sampling: SamplingParams
    kv_dtype: torch.dtype
    weights_bytes: int
    fingerprint: str
    tokenizer_fingerprint: str
    notes: tuple[str, ...] = ()
