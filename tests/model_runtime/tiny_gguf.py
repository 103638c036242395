"""Writes tiny models as GGUF files, the way llama.cpp's converter does, quantised by the gguf library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, get_tensor_name_map, quantize
from gguf.constants import MODEL_ARCH_NAMES
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

Value = str | bool | int | float | list[int] | list[float] | list[bool] | list[str]
Tensors = dict[str, np.ndarray]
Raw = dict[str, tuple[np.ndarray, GGMLQuantizationType]]  # the bytes of blocks, and their type


def write_gguf(
    checkpoint: Path, path: Path, matrix_type: GGMLQuantizationType, more: Mapping[str, Value] = MappingProxyType({})
) -> Path:
    """`checkpoint` is a tiny Llama; its layers' matrices become `matrix_type`, embeddings and head Q8_0. `more` is
    further metadata."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    keys = keys_of(model) | {"llama.vocab_size": model.config.vocab_size} | tokenizer_keys(tokenizer) | dict(more)
    return write_file(path, "llama", keys, tensors_of(model, "llama"), matrix_type, GGMLQuantizationType.Q8_0)


def write_file(
    path: Path,
    architecture: str,
    keys: Mapping[str, Value],
    tensors: Tensors,
    matrix_type: GGMLQuantizationType = GGMLQuantizationType.F32,
    other_type: GGMLQuantizationType = GGMLQuantizationType.F32,
    raw: Raw | None = None,
) -> Path:
    """Matrices of layers become `matrix_type`, other matrices `other_type`, vectors float32. `raw` are written as they
    are."""
    writer = GGUFWriter(path, architecture)
    for key, value in keys.items():
        _add(writer, key, value)
    for name, weights in tensors.items():
        kind = matrix_type if name.startswith("blk.") else other_type
        if raw and name in raw:
            rows, raw_type = raw[name]
            writer.add_tensor(name, rows, raw_dtype=raw_type)
        elif weights.ndim == 1 or kind == GGMLQuantizationType.F32:
            writer.add_tensor(name, np.ascontiguousarray(weights, dtype=np.float32))
        else:
            writer.add_tensor(name, quantize(np.ascontiguousarray(weights), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def keys_of(model: PreTrainedModel, architecture: str = "llama") -> dict[str, Value]:
    """What every decoder's file states."""
    config = model.config
    heads, width = config.num_attention_heads, config.hidden_size
    found: dict[str, Value] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": width,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "rope.dimension_count": getattr(config, "head_dim", None) or width // heads,
    }
    rope = config.rope_parameters
    found["rope.freq_base"] = float(rope.get("full_attention", rope)["rope_theta"])
    if hasattr(config, "rms_norm_eps"):
        found["attention.layer_norm_rms_epsilon"] = config.rms_norm_eps
    return {f"{architecture}.{key}": value for key, value in found.items()}


def tensors_of(model: PreTrainedModel, architecture: str) -> Tensors:
    """All weights under their names in a file of the architecture, changed as the converter changes them."""
    config = model.config
    number = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(number, config.num_hidden_layers)
    tensors: Tensors = {}
    for parameter, tensor in model.named_parameters():
        weights = tensor.detach().float().numpy()
        base, _, suffix = parameter.rpartition(".")
        if ".experts." in parameter:
            layer = parameter.split(".")[2]
            parts = np.split(weights, 2, axis=1) if suffix == "gate_up_proj" else [weights]
            kinds = ("gate", "up") if len(parts) == 2 else ("down",)
            tensors |= {f"blk.{layer}.ffn_{kind}_exps.weight": part for kind, part in zip(kinds, parts, strict=True)}
            continue
        if architecture == "llama" and "q_proj" in parameter:
            weights = _pair_rope(weights, config.num_attention_heads)
        elif architecture == "llama" and "k_proj" in parameter:
            weights = _pair_rope(weights, config.num_key_value_heads)
        elif architecture in ("gemma2", "gemma3", "nemotron") and parameter.endswith("norm.weight"):
            weights = weights + np.float32(1)
        elif architecture == "gpt2" and parameter.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
            weights = weights.T
        elif "shared_expert_gate" in parameter:
            weights = weights.reshape(-1)
        elif "query_key_value" in parameter:
            weights = _apart(weights, config)
        module = names.get_name(base) or names.get_name(base.removeprefix("transformer."))
        tensors[f"{module}.{suffix}"] = weights
    return tensors


def tokenizer_keys(tokenizer: PreTrainedTokenizerFast, split: str = "gpt-2") -> dict[str, Value]:
    """A byte-level tokenizer's vocabulary, merges and special tokens."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = [token for token, _ in sorted(model["vocab"].items(), key=lambda entry: entry[1])]
    special = set(tokenizer.all_special_tokens)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": split,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [
            int(TokenType.CONTROL if token in special else TokenType.NORMAL) for token in tokens
        ],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.bos_token_id": tokenizer.bos_token_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
        "tokenizer.chat_template": tokenizer.chat_template,
    }


def _add(writer: GGUFWriter, key: str, value: Value) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _pair_rope(rows: np.ndarray, heads: int) -> np.ndarray:
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _apart(rows: np.ndarray, config: object) -> np.ndarray:
    """Falcon's and Bloom's groups of queries, key and value as all queries, all keys, all values."""
    if getattr(config, "model_type", "") == "bloom":
        groups, queries = config.n_head, 1
    elif config.new_decoder_architecture:
        groups, queries = config.num_kv_heads, config.num_attention_heads // config.num_kv_heads
    else:
        return rows
    grouped = rows.reshape(groups, queries + 2, -1, *rows.shape[1:])
    parts = (grouped[:, :-2], grouped[:, -2:-1], grouped[:, -1:])
    return np.concatenate([part.reshape(-1, *rows.shape[1:]) for part in parts])
