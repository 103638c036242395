"""Models of real shapes with random weights, made on the device and optionally quantised."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    GPTBigCodeConfig,
    LlamaConfig,
    MptConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from benchmarks.gpu.bench import Bench
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.loading.loaded import LoadedModel

PRECISIONS = ("none", "int8", "fp4", "nf4")


def _smollm2(tiny: bool) -> LlamaConfig:
    """SmolLM2-135M."""
    small = {"vocab_size": 512, "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 3}
    real = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64}
    if tiny:
        heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16}
    return LlamaConfig(
        **(small if tiny else real),
        **heads,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5},
    )


def _llama3_8b(tiny: bool) -> LlamaConfig:
    """Llama-3-8B; positions for 32k instead of 8k, so that long histories can be measured."""
    small = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    real = {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8}
    if tiny:
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaConfig(
        **(small if tiny else real),
        **heads,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
    )


def _qwen3_4b(tiny: bool) -> Qwen3Config:
    """Qwen3-4B."""
    small = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    real = {"vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    if tiny:
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    return Qwen3Config(
        **(small if tiny else real),
        **heads,
        max_position_embeddings=40960,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )


def _llama32_1b(tiny: bool) -> LlamaConfig:
    """Llama-3.2-1B."""
    small = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    real = {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64}
    if tiny:
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    return LlamaConfig(
        **(small if tiny else real),
        **heads,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
    )


def _qwen3_06b(tiny: bool) -> Qwen3Config:
    """Qwen3-0.6B."""
    small = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    real = {"vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
    if tiny:
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    return Qwen3Config(
        **(small if tiny else real),
        **heads,
        max_position_embeddings=40960,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )


def _octocoder(tiny: bool) -> GPTBigCodeConfig:
    """OctoCoder and StarCoder: 15.5B, one key head for 48 query heads."""
    small = {"vocab_size": 512, "n_embd": 128, "n_inner": 256, "n_layer": 2, "n_head": 4, "n_positions": 1024}
    real = {"vocab_size": 49152, "n_embd": 6144, "n_inner": 24576, "n_layer": 40, "n_head": 48, "n_positions": 8192}
    return GPTBigCodeConfig(**(small if tiny else real), multi_query=True, bos_token_id=0, eos_token_id=0)


def _mpt_1b(tiny: bool) -> MptConfig:
    """MPT-1B: ALiBi."""
    small = {"vocab_size": 512, "d_model": 96, "n_layers": 2, "n_heads": 6}
    real = {"vocab_size": 50368, "d_model": 2048, "n_layers": 24, "n_heads": 16}
    return MptConfig(**(small if tiny else real), max_seq_len=4096)


def _falcon_7b(tiny: bool) -> FalconConfig:
    """Falcon-7B: one key head for 71 query heads; positions for 4k instead of 2k."""
    small = {"vocab_size": 512, "hidden_size": 112, "num_hidden_layers": 2, "num_attention_heads": 7}
    real = {"vocab_size": 65024, "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71}
    return FalconConfig(**(small if tiny else real), max_position_embeddings=4096)


SHAPES: dict[str, Callable[[bool], Any]] = {
    "smollm2_135m": _smollm2,
    "llama3_8b": _llama3_8b,
    "qwen3_4b": _qwen3_4b,
    "llama32_1b": _llama32_1b,
    "qwen3_06b": _qwen3_06b,
    "octocoder": _octocoder,
    "mpt_1b": _mpt_1b,
    "falcon_7b": _falcon_7b,
}


def build(bench: Bench, shape: str, precision: str, dtype: torch.dtype | None = None) -> LoadedModel:
    """A model with random weights in `dtype` (the bench's if None), its matrices then quantised. Needs neither
    accelerate nor files."""
    config = SHAPES[shape](bench.is_tiny)
    dtype = dtype or bench.dtype
    torch.manual_seed(6)
    with torch.device(bench.device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    model.requires_grad_(False)
    if precision != "none":
        quantise(model, precision, dtype)
    bench.clean()
    return describe(model, shape, precision, dtype)


def describe(model: PreTrainedModel, name: str, precision: str, dtype: torch.dtype) -> LoadedModel:
    """The model as the engine needs it, without stop tokens and with a tokenizer that knows every id."""
    return LoadedModel(
        model=model,
        tokenizer=number_tokenizer(int(model.config.get_text_config().vocab_size)),
        name=name,
        quantization=precision,
        stop_token_ids=frozenset(),
        default_sampling=SamplingParams(temperature=0),
        kv_dtype=dtype,
        weights_bytes=weights_bytes(model),
        fingerprint=f"{name}-{precision}-{dtype}",
        tokenizer_fingerprint="numbers",
    )


def load_checkpoint(bench: Bench, path: str) -> LoadedModel:
    """A real checkpoint as Keepwarm loads it by default. Only this function needs accelerate."""
    from dataclasses import replace

    from model_runtime.interface.config import ModelConfig
    from model_runtime.loading.loading import load_model

    config = ModelConfig(model=path, device=str(bench.device), cache_dir=Path.home() / ".cache" / "keepwarm")
    return replace(load_model(config, lambda line: print(f"# {line}")), stop_token_ids=frozenset())


def quantise(model: PreTrainedModel, precision: str, dtype: torch.dtype) -> None:
    """Quantises every matrix but the head, as transformers does: "int8" with outlier threshold 6, "fp4" with the
    library's defaults (no double quantization), "nf4" with double quantization."""
    # On its first import on a CPU it logs, as an error, the advice to install a package with kernels from the hub.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR + 1)
    # int8 computes in float16 and would log that at every product.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    import bitsandbytes as bnb

    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear) or name.endswith("lm_head"):
            continue
        sizes, has_bias, weight = (module.in_features, module.out_features), module.bias is not None, module.weight.data
        if precision == "int8":
            packed = bnb.nn.Linear8bitLt(*sizes, has_bias, has_fp16_weights=False, threshold=6.0, device="meta")
            packed.weight = bnb.nn.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False).to(
                weight.device
            )
        else:
            double = precision == "nf4"
            packed = bnb.nn.Linear4bit(*sizes, has_bias, dtype, double, precision, device="meta")
            packed.weight = bnb.nn.Params4bit(
                weight, requires_grad=False, quant_type=precision, compress_statistics=double, module=packed
            ).to(weight.device)
        packed.bias = module.bias
        module.weight = None
        model.set_submodule(name, packed.requires_grad_(False))


def weights_bytes(model: PreTrainedModel) -> int:
    """Bytes of all parameters, buffers and scales of 4-bit layers, shared ones counted once."""
    tensors: list[torch.Tensor] = [*model.parameters(), *model.buffers()]
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        for part in (state, getattr(state, "state2", None)):
            tensors += [t for t in (getattr(part, "absmax", None), getattr(part, "code", None)) if t is not None]
    for module in model.modules():
        tensors += [t for t in (getattr(getattr(module, "state", None), "SCB", None),) if t is not None]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def read_bytes_a_token(model: PreTrainedModel) -> int:
    """Bytes of weights that one decode step reads: all but the embedding table, unless that is also the head."""
    head, table = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    return weights_bytes(model) - (0 if head is table or head.data_ptr() == table.data_ptr() else table.nbytes)


def number_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose words are numbers: "t7 " is id 7."""
    words = {f"t{number} ": number for number in range(vocabulary)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="t0 ")))
