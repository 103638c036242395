"""Checks that a GGUF file's metadata fits its tensors, before anything is built from either."""

from __future__ import annotations

import math
import re

from model_runtime.architecture.config_check import MOST_CONTEXT_TOKENS
from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.checks.gguf_header import GgufHeader, Items, Value

_LAYER = re.compile(r"blk\.(\d{1,6})\.")
# Each is a size of something in the file, so it cannot exceed the largest dimension of all tensors.
_SIZES = (
    *("embedding_length", "feed_forward_length", "expert_feed_forward_length", "expert_shared_feed_forward_length"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
    *("expert_count", "expert_used_count", "vocab_size", "rope.dimension_count"),
)
_FACTORS = (
    *("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "rope.freq_base", "rope.scale_linear"),
    *("rope.scaling.factor", "attention.scale", "logit_scale", "embedding_scale", "residual_scale"),
)


def check_gguf(name: str, header: GgufHeader) -> None:
    """Raises `ModelLoadError` if the header of the file `name` is inconsistent."""
    problem = _problem(header)
    if problem:
        raise ModelLoadError(f"{name} cannot be used: {problem}. Download it again, or from another source.")


def _problem(header: GgufHeader) -> str | None:
    if not header.architecture:
        return "it does not state its architecture"
    widest = max(max(tensor.shape) for tensor in header.tensors.values())
    return (
        _wrong_layers(header)
        or _wrong_sizes(header, widest)
        or _wrong_factors(header)
        or _wrong_heads(header)
        or _wrong_vocabulary(header)
    )


def _wrong_layers(header: GgufHeader) -> str | None:
    found = {int(match.group(1)) for name in header.tensors if (match := _LAYER.match(name))}
    claimed = _own(header, "block_count")
    if not isinstance(claimed, int) or claimed != len(found) or found != set(range(claimed)):
        return f"it says it has {_said(claimed)} layers, but it has tensors for {len(found)}"
    return None


def _wrong_sizes(header: GgufHeader, widest: int) -> str | None:
    for key in _SIZES:
        value = _own(header, key)
        numbers = value.numbers if isinstance(value, Items) else () if value is None else (value,)
        for number in numbers:
            if not isinstance(number, int) or not 0 <= number <= widest:
                return f"its {key} is {_said(number)}, but no tensor in it is wider than {widest:,}"
    context = _own(header, "context_length")
    if context is not None and (not isinstance(context, int) or not 0 < context <= MOST_CONTEXT_TOKENS):
        return f"it says its context is {_said(context)} tokens long"
    return None


def _wrong_factors(header: GgufHeader) -> str | None:
    for key in _FACTORS:
        value = _own(header, key)
        if value is None:
            continue
        if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
            return f"its {key} is {_said(value)}"
    return None


def _wrong_heads(header: GgufHeader) -> str | None:
    heads, kv_heads = _own(header, "attention.head_count"), _own(header, "attention.head_count_kv")
    if isinstance(heads, int) and isinstance(kv_heads, int):
        if heads <= 0 or kv_heads < 0 or (kv_heads and heads % kv_heads):
            return f"{heads} heads cannot share {kv_heads} key heads"
        width = _own(header, "embedding_length")
        has_own_width = _own(header, "attention.key_length") is not None
        if isinstance(width, int) and not has_own_width and width % heads:
            return f"{heads} heads do not divide its width of {width:,}"
    return None


def _wrong_vocabulary(header: GgufHeader) -> str | None:
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        return "it has no token embeddings"
    if not isinstance(tokens, Items):
        return "it has no list of tokens"
    if tokens.count > embedding.shape[0]:
        return f"it lists {tokens.count:,} tokens, but has embeddings of {embedding.shape[0]:,}"
    for key, value in header.metadata.items():
        is_token = key.startswith("tokenizer.ggml.") and key.endswith("_token_id")
        # 2^32 - 1 is how some converters write "none"
        if is_token and not (value in range(embedding.shape[0]) or value == 0xFFFFFFFF):
            return f"its {key.removeprefix('tokenizer.ggml.')} is {_said(value)}, which is not one of its tokens"
    return None


def _own(header: GgufHeader, key: str) -> Value | None:
    return header.metadata.get(f"{header.architecture}.{key}")


def _said(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)[:60]
