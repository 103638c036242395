"""Tiny models of every architecture that is read from GGUF, with what their files state beside the usual."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.model_runtime.tiny_gguf import Raw, Tensors, Value, keys_of, tensors_of, tokenizer_keys, write_file
from tests.model_runtime.tiny_models import tiny_tokenizer

CONTEXT_TOKENS = 256
IDS = [(7 * place + place // 5) % 500 for place in range(CONTEXT_TOKENS - 2)]


@dataclass(frozen=True, slots=True)
class Case:
    """`settings` make the transformers model, `keys` say the same in the file."""

    architecture: str
    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, Value] = field(default_factory=dict)

    def model(self) -> PreTrainedModel:
        """Random weights, norms and biases included, on which the logits depend clearly."""
        usual = {
            "vocab_size": 512,
            "hidden_size": 64,
            "intermediate_size": 96,  # with heads of 32, our own kernels fit
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": CONTEXT_TOKENS,
            "tie_word_embeddings": False,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "pad_token_id": None,
        }
        settings = {key: value for key, value in (usual | self.settings).items() if value != "none"}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(self.model_type, **settings)).float().eval()
            for name, parameter in model.named_parameters():
                around = 0.0 if self.architecture in ("gemma2", "gemma3", "nemotron") or parameter.ndim > 1 else 1.0
                around = 0.0 if name.endswith("bias") else around
                torch.nn.init.normal_(parameter, around, 0.15)
        return model

    def all_keys(self, model: PreTrainedModel) -> dict[str, Value]:
        """Everything the file states."""
        own = {f"{self.architecture}.{key}": value for key, value in self.keys.items()}
        usual = {} if self.model_type in ("gpt2", "bloom", "falcon") else keys_of(model, self.architecture)
        return {key: v for key, v in (usual | own | tokenizer_keys(tiny_tokenizer())).items() if v != "none"}

    def write(
        self,
        path: Path,
        model: PreTrainedModel,
        matrix_type: GGMLQuantizationType = GGMLQuantizationType.F32,
        keys: dict[str, Value] | None = None,
        tensors: Tensors | None = None,
        raw: Raw | None = None,
    ) -> Path:
        """The file. `keys` and `tensors` replace those of the case, `raw` some of its tensors by blocks."""
        tensors = self.all_tensors(model) if tensors is None else tensors
        return write_file(path, self.architecture, keys or self.all_keys(model), tensors, matrix_type, raw=raw)

    def all_tensors(self, model: PreTrainedModel) -> Tensors:
        """Everything the file contains."""
        tensors = tensors_of(model, self.architecture)
        if model.config.tie_word_embeddings:
            tensors.pop("output.weight", None)
        rope = getattr(model.config, "rope_parameters", None) or {}
        if rope.get("rope_type") == "llama3":
            plain, _ = _frequencies(model.config)
            bent, _ = ROPE_INIT_FUNCTIONS["llama3"](model.config, "cpu")
            tensors["rope_freqs.weight"] = (plain / bent).numpy()
        if rope.get("rope_type") == "longrope":
            tensors["rope_factors_long.weight"] = np.array(rope["long_factor"])
            tensors["rope_factors_short.weight"] = np.array(rope["short_factor"])
        return tensors


def _frequencies(config: Any) -> tuple[torch.Tensor, float]:
    dim = config.head_dim
    base = config.rope_parameters["rope_theta"]
    return 1.0 / base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim), 1.0


def _rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **more}}


_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
_ODD_LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.5, "high_freq_factor": 7.0, "original_max_position_embeddings": 100}
_WIDE = {"head_dim": 32}
_WIDE_KEYS: dict[str, Value] = {"attention.key_length": 32, "attention.value_length": 32}
_LAYERS4 = {"num_hidden_layers": 4}
_FULL, _SLIDING = "full_attention", "sliding_attention"
_GEMMA = {"head_dim": 32, "num_hidden_layers": 4, "query_pre_attn_scalar": 4, "sliding_window": 16}
_GEMMA2 = {**_GEMMA, "tie_word_embeddings": True}  # llama.cpp has no other
_GEMMA_KEYS: dict[str, Value] = {
    "attention.key_length": 32,
    "attention.value_length": 32,
    "attention.sliding_window": 16,
    "attention.scale": 0.5,
}
_EXPERTS: dict[str, Value] = {"expert_count": 4, "expert_used_count": 2}
_PARTIAL: dict[str, Value] = {"rope.dimension_count": 8}
_YARN = {"factor": 4.0, "original_max_position_embeddings": 64}
_YARN_KEYS: dict[str, Value] = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 64,
}
_NO_HEADS = {"num_key_value_heads": "none", "intermediate_size": "none"}
_GPT2 = {"embedding_length": 64, "block_count": 2, "attention.head_count": 4, "context_length": CONTEXT_TOKENS}
_FALCON: dict[str, Value] = {**_GPT2, "attention.layer_norm_epsilon": 1e-5, "rope.freq_base": 10_000.0}

CASES = {
    "llama": Case("llama", "llama"),
    "llama base": Case("llama", "llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}}),
    "llama linear": Case(
        "llama", "llama", _rope("linear", factor=4.0), {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    ),
    "llama old linear": Case("llama", "llama", _rope("linear", factor=4.0), {"rope.scale_linear": 4.0}),
    "llama yarn": Case("llama", "llama", _rope("yarn", **_YARN), _YARN_KEYS),
    "llama yarn with betas": Case(
        "llama",
        "llama",
        _rope("yarn", beta_fast=2.0, beta_slow=0.125, attention_factor=1.5 * (1 + 0.1 * float(np.log(4))), **_YARN),
        {
            **_YARN_KEYS,
            "rope.scaling.yarn_beta_fast": 2.0,
            "rope.scaling.yarn_beta_slow": 0.125,
            "rope.scaling.attn_factor": 1.5,
        },
    ),
    "llama3": Case("llama", "llama", {**_WIDE, **_rope("llama3", **_LLAMA3)}, _WIDE_KEYS),
    "llama3 otherwise": Case("llama", "llama", {**_WIDE, **_rope("llama3", **_ODD_LLAMA3)}, _WIDE_KEYS),
    "llama attention bias": Case("llama", "llama", {"attention_bias": True}),
    "llama mlp bias": Case("llama", "llama", {"mlp_bias": True}),
    "llama heads": Case("llama", "llama", _WIDE, _WIDE_KEYS),
    "llama tied": Case("llama", "llama", {"tie_word_embeddings": True}),
    "wide yarn": Case("llama", "llama", {**_WIDE, **_rope("yarn", **_YARN)}, {**_WIDE_KEYS, **_YARN_KEYS}),
    "wide linear": Case(
        "llama", "llama", {**_WIDE, **_rope("linear", factor=4.0)}, {**_WIDE_KEYS, "rope.scaling.factor": 4.0}
    ),
    "wide attention bias": Case("llama", "llama", {**_WIDE, "attention_bias": True}, _WIDE_KEYS),
    "wide mlp bias": Case("llama", "llama", {**_WIDE, "mlp_bias": True}, _WIDE_KEYS),
    "mistral": Case("llama", "mistral", {"sliding_window": 16}, {"attention.sliding_window": 16}),
    "mixtral": Case("llama", "mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}, _EXPERTS),
    "qwen2": Case("qwen2", "qwen2"),
    "wide qwen2": Case("qwen2", "qwen2", _WIDE, _WIDE_KEYS),
    "qwen2 yarn": Case("qwen2", "qwen2", _rope("yarn", **_YARN), _YARN_KEYS),
    "qwen2 window": Case(
        "qwen2",
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 16, "layer_types": [_FULL, _SLIDING]},
        {"attention.sliding_window": 16, "attention.sliding_window_pattern": [False, True]},
    ),
    "qwen3": Case("qwen3", "qwen3", _WIDE, _WIDE_KEYS),
    "qwen3 bias": Case("qwen3", "qwen3", {**_WIDE, "attention_bias": True}, _WIDE_KEYS),
    "qwen2moe": Case(
        "qwen2moe",
        "qwen2_moe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 48,
            "norm_topk_prob": False,
        },
        {**_EXPERTS, "expert_feed_forward_length": 32, "expert_shared_feed_forward_length": 48},
    ),
    "qwen3moe": Case(
        "qwen3moe",
        "qwen3_moe",
        {**_WIDE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True},
        {**_WIDE_KEYS, **_EXPERTS, "expert_feed_forward_length": 32},
    ),
    "gemma2": Case(
        "gemma2",
        "gemma2",
        {**_GEMMA2, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
        {**_GEMMA_KEYS, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    ),
    "gemma2 usual caps": Case("gemma2", "gemma2", _GEMMA2, _GEMMA_KEYS),
    "gemma3": Case(
        "gemma3",
        "gemma3_text",
        {
            **_GEMMA,
            "layer_types": [_SLIDING, _FULL, _SLIDING, _FULL],
            "final_logit_softcapping": 4.0,
            "rope_parameters": {
                _FULL: {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                _SLIDING: {"rope_type": "default", "rope_theta": 500.0},
            },
        },
        {
            **_GEMMA_KEYS,
            "attention.sliding_window_pattern": 2,
            "final_logit_softcapping": 4.0,
            "rope.freq_base_swa": 500.0,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        },
    ),
    "gemma3 six layers": Case("gemma3", "gemma3_text", {**_GEMMA, "num_hidden_layers": 7}, _GEMMA_KEYS),
    "phi3": Case("phi3", "phi3", {"sliding_window": 16}, {"attention.sliding_window": 16}),
    "phi3 partial": Case("phi3", "phi3", _rope("default", partial_rotary_factor=0.5), _PARTIAL),
    "phi3 long": Case(
        "phi3",
        "phi3",
        {
            "original_max_position_embeddings": 64,
            **_rope(
                "longrope",
                long_factor=[1.0 + place for place in range(8)],
                short_factor=[1.0 + place / 8 for place in range(8)],
                attention_factor=1.2,
                original_max_position_embeddings=64,
            ),
        },
        {"rope.scaling.original_context_length": 64, "rope.scaling.attn_factor": 1.2},
    ),
    "starcoder2": Case(
        "starcoder2",
        "starcoder2",
        {"sliding_window": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 300.0}},
        {"attention.sliding_window": 16, "attention.layer_norm_epsilon": 1e-5},
    ),
    "stablelm": Case(
        "stablelm",
        "stablelm",
        {"use_qkv_bias": True, **_rope("default", partial_rotary_factor=0.5)},
        {**_PARTIAL, "attention.layer_norm_epsilon": 1e-5, "use_parallel_residual": False},
    ),
    "stablelm parallel": Case(
        "stablelm",
        "stablelm",
        {"use_parallel_residual": True, **_rope("default", partial_rotary_factor=0.5)},
        {**_PARTIAL, "attention.layer_norm_epsilon": 1e-5},
    ),
    "nemotron": Case(
        "nemotron",
        "nemotron",
        _rope("default", partial_rotary_factor=0.5),
        {**_PARTIAL, "attention.layer_norm_epsilon": 1e-5},
    ),
    "falcon one key": Case(
        "falcon", "falcon", _NO_HEADS, {**_FALCON, "attention.head_count_kv": 1, "feed_forward_length": 256}
    ),
    "falcon two norms": Case(
        "falcon",
        "falcon",
        {**_NO_HEADS, "num_kv_heads": 2, "new_decoder_architecture": True},
        {**_FALCON, "attention.head_count_kv": 2},
    ),
    "falcon one norm": Case(
        "falcon",
        "falcon",
        {**_NO_HEADS, "num_kv_heads": 2, "new_decoder_architecture": True, "num_ln_in_parallel_attn": 1},
        {**_FALCON, "attention.head_count_kv": 2},
    ),
    "bloom": Case(
        "bloom",
        "bloom",
        {**_NO_HEADS, "num_hidden_layers": "none", "n_layer": 2, "n_head": 4, "num_attention_heads": "none"},
        {**_GPT2, "attention.layer_norm_epsilon": 1e-5, "feed_forward_length": 256},
    ),
    "gpt2": Case(
        "gpt2",
        "gpt2",
        {**_NO_HEADS, "max_position_embeddings": "none", "n_positions": CONTEXT_TOKENS},
        {**_GPT2, "attention.layer_norm_epsilon": 1e-5, "feed_forward_length": 256},
    ),
}

# Keys of the cases that say what is so without them, too.
SAID_ANYWAY = (
    *("attention.value_length", "feed_forward_length", "use_parallel_residual", "rope.scaling.type", "rope.freq_base"),
    "attention.head_count_kv",
)
