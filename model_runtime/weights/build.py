"""Builds a transformers model from stored blocks: at the shipped 4 bits on a CPU, or de-quantised on any device."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from model_runtime.architecture.config_check import check_config
from model_runtime.architecture.decoder_layout import has_common_layout
from model_runtime.architecture.shape_check import check_decoder_shapes
from model_runtime.weights.linear_int4 import Int4Linear, Int4Matrix, KernelPlan, Scratch, fits_packed_kernel
from model_runtime.weights.linear_stored import CastLinear, HalfHead, Int8Embedding, UpcastEmbedding
from model_runtime.weights.native_matrix import NativeLinear, NativeMatrix
from model_runtime.weights.q4_blocks import GROUP, Q4Blocks, Q8Blocks
from model_runtime.weights.stored_weights import Packable, Stored, dense, halved, load_weights


def build_dequantised(directory: Path, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """A model with all weights in `dtype`: the file's values, rounded once if `dtype` has 16 bits."""
    weights = load_weights(directory)
    model = _skeleton(directory, dtype)
    for name, stored in weights.items():
        _set_parameter(model, name, dense(stored).to(device=device, dtype=dtype))
    model.tie_weights()
    return _finish(model).to(device)


def build_packed(directory: Path, plan: KernelPlan) -> PreTrainedModel:
    """A CPU model with float32 activations: matrices at 4 bits if they were shipped that way, embeddings as stored,
    norms in float32. The head has 16 bits, or is as stored if our own kernels run."""
    weights = load_weights(directory)
    model = _skeleton(directory, torch.float32)
    head_weight = halved(weights.pop("lm_head.weight", weights["model.embed_tokens.weight"]))
    embedding, scratch = model.get_input_embeddings(), Scratch()
    model.set_input_embeddings(_embedding(halved(weights.pop("model.embed_tokens.weight")), embedding))
    if plan.kernels is not None:
        model.set_output_embeddings(NativeLinear(NativeMatrix(head_weight, None, plan.kernels)))
    else:
        model.set_output_embeddings(HalfHead(dense(head_weight).float()))
    for name in [name for name in weights if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Linear)]:
        module, _, kind = name.rpartition(".")
        if kind == "weight":
            bias = weights.pop(f"{module}.bias", None)
            model.set_submodule(module, _linear(halved(weights.pop(name)), bias, plan, scratch))
    for name, stored in weights.items():
        _set_parameter(model, name, dense(stored).float())
    model.config.tie_word_embeddings = False
    _finish(model)
    if has_common_layout(model):
        check_decoder_shapes(model)
    return model


def _linear(stored: Packable, bias: Stored | None, plan: KernelPlan, scratch: Scratch) -> nn.Module:
    bias_numbers = None if bias is None else dense(bias).float()
    columns = (stored.codes if isinstance(stored, Q8Blocks) else stored).shape[1]
    if plan.kernels is not None and columns % GROUP == 0:
        return NativeLinear(NativeMatrix(stored, bias_numbers, plan.kernels))
    if isinstance(stored, Q4Blocks) and plan.packed and fits_packed_kernel(*stored.shape):
        return Int4Linear(Int4Matrix(stored), bias_numbers, plan, scratch)
    weight = dense(stored).to(plan.gemm_dtype)
    with torch.device("meta"):
        linear = CastLinear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias_numbers is not None:
        linear.bias = nn.Parameter(bias_numbers.to(plan.gemm_dtype), requires_grad=False)
    return linear


def _embedding(stored: Packable, replaced: nn.Module) -> nn.Module:
    if isinstance(stored, Q8Blocks):
        return Int8Embedding(Q8Blocks(stored.codes.clone(), stored.scale.clone()))
    table = stored.clone() if isinstance(stored, torch.Tensor) else dense(stored).to(torch.float16)
    with torch.device("meta"):
        embedding = UpcastEmbedding(table.shape[0], table.shape[1], padding_idx=getattr(replaced, "padding_idx", None))
    embedding.weight = nn.Parameter(table, requires_grad=False)
    return embedding


def _skeleton(directory: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model's modules without weights; rotary tables and other buffers are real."""
    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    check_config(config, directory.name)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    advice = directory / GENERATION_CONFIG_NAME
    if advice.exists():
        model.generation_config = GenerationConfig.from_dict(json.loads(advice.read_text(encoding="utf-8")))
    return model


def _set_parameter(model: PreTrainedModel, name: str, value: torch.Tensor) -> None:
    module, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(module), attribute, nn.Parameter(value, requires_grad=False))


def _finish(model: PreTrainedModel) -> PreTrainedModel:
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if missing:
        raise ValueError(f"The file has no weights for {', '.join(missing[:3])}.")
    return model.eval()
