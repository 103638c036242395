"""Tiny random checkpoints of the families whose attention Keepwarm replaces, in the variants that compute differently.

Every weight is random, biases and norms too, so that one that is left out changes the logits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CodeGenConfig,
    FalconConfig,
    GenerationConfig,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXJapaneseConfig,
    MptConfig,
    OpenAIGPTConfig,
    XGLMConfig,
)

from tests.model_runtime.tiny_models import (
    BEGIN_TOKEN,
    CONTEXT_TOKENS,
    END_TOKEN,
    SLIDING_WINDOW_TOKENS,
    VOCABULARY_TOKENS,
    tiny_tokenizer,
)

LAYERS = 3
SHAPE = {"hidden_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "initializer_range": 0.2}
SIX_HEADS = {**SHAPE, "hidden_size": 48, "num_attention_heads": 6}  # no power of two: ALiBi's slopes differ
CONTEXT = {"max_position_embeddings": CONTEXT_TOKENS}
GPT_SHAPE = {"n_embd": 64, "n_layer": LAYERS, "n_head": 4, "n_positions": CONTEXT_TOKENS, "initializer_range": 0.2}
MPT_SHAPE = {"d_model": 48, "n_heads": 6, "n_layers": LAYERS, "max_seq_len": CONTEXT_TOKENS, "initializer_range": 0.2}
MPT_OPTIONS = {"clip_qkv": 0.9, "softmax_scale": 0.21}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}
NEO_SHAPE = {"hidden_size": 64, "num_layers": 4, "num_heads": 4, "initializer_range": 0.1}  # scores are not scaled
XGLM_SHAPE = {"d_model": 64, "ffn_dim": 128, "num_layers": LAYERS, "attention_heads": 4, "init_std": 0.2}

CONFIGS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "falcon": (FalconConfig, {**SHAPE, **CONTEXT}),  # as 7B: one key head
    "falcon-groups": (FalconConfig, {**SHAPE, **CONTEXT, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-11b": (
        FalconConfig,
        {**SHAPE, **CONTEXT, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "falcon-alibi": (  # as RW: a key head for each query
        FalconConfig,
        {**SIX_HEADS, **CONTEXT, "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
    ),
    "falcon-alibi-one-key": (FalconConfig, {**SIX_HEADS, **CONTEXT, "alibi": True}),
    "falcon-alibi-groups": (
        FalconConfig,
        {**SHAPE, **CONTEXT, "alibi": True, "new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "falcon-heads": (FalconConfig, {**SHAPE, **CONTEXT, "multi_query": False, "bias": True, "parallel_attn": False}),
    "falcon-yarn": (FalconConfig, {**SHAPE, **CONTEXT, "rope_parameters": YARN}),
    "falcon-linear": (FalconConfig, {**SHAPE, **CONTEXT, "rope_parameters": LINEAR}),
    "bloom": (BloomConfig, SIX_HEADS),
    "bloom-post-norm": (BloomConfig, {**SHAPE, "apply_residual_connection_post_layernorm": True}),
    "mpt": (MptConfig, {**MPT_SHAPE, "attn_config": MPT_OPTIONS}),
    "mpt-plain": (MptConfig, {**MPT_SHAPE, "d_model": 64, "n_heads": 4}),
    "gptj": (GPTJConfig, {**GPT_SHAPE, "rotary_dim": 8}),
    "codegen": (CodeGenConfig, {**GPT_SHAPE, "n_ctx": CONTEXT_TOKENS, "rotary_dim": 8}),
    "gpt-neo": (
        GPTNeoConfig,
        {**NEO_SHAPE, **CONTEXT, "attention_types": [[["global", "local"], 2]], "window_size": SLIDING_WINDOW_TOKENS},
    ),
    "gpt-neox-japanese": (
        GPTNeoXJapaneseConfig,
        {**SHAPE, **CONTEXT, "intermediate_multiple_size": 2, "rope_parameters": {"partial_rotary_factor": 0.5}},
    ),
    "xglm": (XGLMConfig, {**XGLM_SHAPE, **CONTEXT}),
    "gpt": (OpenAIGPTConfig, GPT_SHAPE),
}


def tiny_classic(name: str, directory: Path, **changes: Any) -> Path:
    """The checkpoint of that name in `CONFIGS`, its settings changed by `changes`."""
    tokenizer = tiny_tokenizer()
    ids = {
        "bos_token_id": tokenizer.convert_tokens_to_ids(BEGIN_TOKEN),
        "eos_token_id": tokenizer.convert_tokens_to_ids(END_TOKEN),
        "pad_token_id": tokenizer.convert_tokens_to_ids(END_TOKEN),
    }
    make, settings = CONFIGS[name]
    config = make(vocab_size=VOCABULARY_TOKENS, **{**settings, **changes}, **ids)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(21)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


TINY_CLASSIC = {name: partial(tiny_classic, name) for name in CONFIGS}
