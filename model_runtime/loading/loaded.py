"""A loaded model as the engine needs it: weights, tokenizer and facts about them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from model_runtime.interface.findings import Int8Drift
from model_runtime.interface.protocol import ModelInfo
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.kv.saved_rows import SavedRows


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """`model` is in eval mode on its device; `kv_dtype` is the dtype of keys and values in its attention layers.
    `fingerprint` identifies the weights, their quantization and dtype, and the RoPE settings. `notes` are sentences for
    the start-up lines: what was chosen, what is degraded and why. `stop_strings` end every answer, whatever a request
    asks for: texts by which a model without an end token goes on with the next person's part."""

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
    stop_strings: tuple[str, ...] = ()


def model_info(
    loaded: LoadedModel,
    kernel: str,
    rows: SavedRows,
    context_limit_tokens: int,
    drift: Int8Drift | None,
    notes: tuple[str, ...],
) -> ModelInfo:
    """Facts about the model as this engine runs it. `notes` are the engine's own and follow those of the load."""
    short_tokens = rows.geometry.short_rope_tokens
    if short_tokens is not None:
        passing = f"Long RoPE: a conversation that passes {short_tokens:,} tokens is read again once"
        notes = (*notes, f"{passing}, with the model's other rotary frequencies.")
    return ModelInfo(
        name=loaded.name,
        quantization=loaded.quantization,
        kernel=kernel,
        device=str(rows.geometry.device),
        context_limit_tokens=context_limit_tokens,
        kv_bytes_per_token=rows.geometry.bytes_per_token,
        weights_bytes=loaded.weights_bytes,
        fingerprint=rows.fingerprint(loaded.fingerprint, loaded.kv_dtype),
        tokenizer_fingerprint=loaded.tokenizer_fingerprint,
        default_sampling=loaded.default_sampling,
        notes=(*loaded.notes, *notes),
        int8_drift=drift,
        short_rope_tokens=short_tokens,
    )
