"""Writes a tiny checkpoint as a GGUF file, the way llama.cpp's converter does, quantised by the gguf library."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, get_tensor_name_map, quantize
from gguf.constants import MODEL_ARCH
from transformers import AutoModelForCausalLM, AutoTokenizer


def write_gguf(checkpoint: Path, path: Path, matrix_type: GGMLQuantizationType) -> Path:
    """`checkpoint` is a tiny Llama; its layers' matrices become `matrix_type`, embeddings and head Q8_0."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, checkpoint)
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for parameter, tensor in model.state_dict().items():
        base, _, suffix = parameter.rpartition(".")
        weights = tensor.numpy()
        if "q_proj" in parameter:
            weights = _pair_rope(weights, config.num_attention_heads)
        elif "k_proj" in parameter:
            weights = _pair_rope(weights, config.num_key_value_heads)
        kind = matrix_type if ".layers." in parameter else GGMLQuantizationType.Q8_0
        name = f"{names.get_name(base)}.{suffix}"
        if weights.ndim == 1:
            writer.add_tensor(name, np.ascontiguousarray(weights))
        else:
            writer.add_tensor(name, quantize(np.ascontiguousarray(weights), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _pair_rope(rows: np.ndarray, heads: int) -> np.ndarray:
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _add_tokenizer(writer: GGUFWriter, checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = [token for token, _ in sorted(model["vocab"].items(), key=lambda entry: entry[1])]
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token in special else TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(tokenizer.chat_template)
