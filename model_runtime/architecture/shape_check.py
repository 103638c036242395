"""Checks that a model is consistent: every matrix, norm, bias and table has the size that its config says. torch checks
what it multiplies, but our own CPU and CUDA kernels trust the sizes they are given and write where these point, so they
run only models that passed these checks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from model_runtime.architecture.decoder_layout import (
    head_dim_of,
    head_norms_of,
    norms_of,
    projections_of,
    rotary_tables,
)
from model_runtime.interface.errors import ModelLoadError


def check_decoder_shapes(model: PreTrainedModel) -> None:
    """Raises `ModelLoadError` at the first tensor whose size is not what the config says. For models with a layout
    that our own forwards compute (`decoder_layout`)."""
    config = model.config.get_text_config()
    wrong = next((sentence for sentence in _wrong_shapes(model, config) if sentence), None)
    if wrong:
        raise ModelLoadError(f"{type(model).__name__} cannot be used: {wrong}.")


def check_bitsandbytes(model: PreTrainedModel) -> None:
    """Compares what a 4-bit or 8-bit checkpoint says of its packed matrices with the actual bytes, because
    bitsandbytes' kernels and ours read as far as they are told. Raises `ModelLoadError`."""
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind == "Linear4bit" and (shape := _other_shape(module)):
            wanted = [int(module.out_features), int(module.in_features)]
            raise ModelLoadError(
                f"{type(model).__name__} cannot be used: {name}.weight has the shape {shape}, but its config "
                f"describes {wanted}."
            )
        wrong = _wrong_4_bits(module) if kind == "Linear4bit" else kind == "Linear8bitLt" and _wrong_8_bits(module)
        if wrong:
            raise ModelLoadError(f"{type(model).__name__} cannot be used: the packed weights of {name} are incomplete.")


def check_vocabulary(model: PreTrainedModel) -> int:
    """How many token ids the model can be fed. Raises `ModelLoadError` if it can generate an id that it cannot be fed:
    an id beyond the embedding table makes a CUDA context unusable."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    rows = int(getattr(embedding, "num_embeddings", 0)) or int(embedding.weight.shape[0])
    outputs = getattr(head, "out_features", None)
    if isinstance(outputs, int) and outputs > rows:
        raise ModelLoadError(
            f"{type(model).__name__} cannot be used: it can generate {outputs:,} tokens, but has embeddings for "
            f"{rows:,}."
        )
    return rows


def sampled_vocabulary(model: PreTrainedModel) -> int:
    """How many token ids the model's logits have."""
    outputs = getattr(model.get_output_embeddings(), "out_features", None)
    return outputs if isinstance(outputs, int) else check_vocabulary(model)


def _other_shape(layer: Any) -> list[int] | None:
    """The shape that was packed, None where it is the layer's."""
    state = getattr(layer.weight, "quant_state", None)
    if state is None or tuple(state.shape) == (layer.out_features, layer.in_features):
        return None
    return [int(size) for size in state.shape]


def _wrong_4_bits(layer: Any) -> bool:
    state = getattr(layer.weight, "quant_state", None)
    if state is None:
        return False  # packed at its first forward
    numbers = int(layer.out_features) * int(layer.in_features)
    nested = state.state2
    return not (
        layer.weight.nbytes * 2 >= numbers
        and state.blocksize > 0
        and state.absmax.numel() * state.blocksize >= numbers
        and state.code.numel() == 16
        and (nested is None or nested.absmax.numel() * nested.blocksize >= state.absmax.numel())
        and (nested is None or nested.code.numel() == 256)
        and (layer.bias is None or layer.bias.numel() == layer.out_features)
    )


def _wrong_8_bits(layer: Any) -> bool:
    scales = getattr(layer.weight, "SCB", None)
    shape = (int(layer.out_features), int(layer.in_features))
    return tuple(layer.weight.shape) != shape or (scales is not None and scales.numel() != shape[0])


def _wrong_shapes(model: Any, config: Any) -> Iterator[str | None]:
    hidden, inner = int(config.hidden_size), int(config.intermediate_size)
    heads, kv_heads, dim = int(config.num_attention_heads), int(config.num_key_value_heads), head_dim_of(config)
    layers = model.model.layers
    if len(layers) != config.num_hidden_layers:
        yield f"it has {len(layers)} layers instead of {config.num_hidden_layers}"
    if heads <= 0 or kv_heads <= 0 or heads % kv_heads or dim <= 0 or dim % 2:
        yield f"{heads} heads of {dim} numbers cannot share {kv_heads} key heads"
    expected = {
        "query": (heads * dim, hidden),
        "key": (kv_heads * dim, hidden),
        "value": (kv_heads * dim, hidden),
        "output": (hidden, heads * dim),
        "gate": (inner, hidden),
        "up": (inner, hidden),
        "down": (hidden, inner),
    }
    for number, layer in enumerate(layers):
        where = f"layer {number}"
        for name, matrix in projections_of(layer).items():
            yield _wrong_matrix(f"the {name} matrix of {where}", matrix, *expected[name])
        norms = norms_of(layer)
        yield _wrong_vector(f"the first norm of {where}", norms.before_attention.weight, hidden)
        yield _wrong_vector(f"the second norm of {where}", norms.before_mlp.weight, hidden)
        for norm in (norms.after_attention, norms.after_mlp):
            yield None if norm is None else _wrong_vector(f"a norm of {where}", norm.weight, hidden)
        for norm in head_norms_of(layer):
            yield None if norm is None else _wrong_vector(f"a head's norm of {where}", norm.weight, dim)
    yield _wrong_vector("the last norm", model.model.norm.weight, hidden)
    yield _wrong_matrix("the output head", model.get_output_embeddings(), int(config.vocab_size), hidden)
    yield _wrong_embedding(model.get_input_embeddings(), int(config.vocab_size), hidden)
    yield _wrong_rope(model.model.rotary_emb, config, dim)


def _wrong_matrix(what: str, matrix: Any, rows: int, columns: int) -> str | None:
    found = (int(matrix.out_features), int(matrix.in_features))
    if found != (rows, columns):
        return f"{what} is {found[0]:,} x {found[1]:,} instead of {rows:,} x {columns:,}"
    bias = getattr(matrix, "bias", None)
    return None if bias is None else _wrong_vector(f"the bias of {what}", bias, rows)


def _wrong_vector(what: str, numbers: torch.Tensor, length: int) -> str | None:
    found = tuple(numbers.shape)
    return None if found == (length,) else f"{what} has the shape {list(found)} instead of [{length:,}]"


def _wrong_embedding(embedding: nn.Module, rows: int, columns: int) -> str | None:
    found = (int(getattr(embedding, "num_embeddings", 0)), int(getattr(embedding, "embedding_dim", 0)))
    if found == (rows, columns):
        return None
    return f"the table of embeddings is {found[0]:,} x {found[1]:,} instead of {rows:,} x {columns:,}"


@torch.inference_mode()
def _wrong_rope(rotary: nn.Module, config: Any, dim: int) -> str | None:
    device = next(iter(rotary.buffers())).device
    cosine, sine = rotary_tables(rotary, config, torch.zeros(1, 1, dtype=torch.int64, device=device))
    found = (int(cosine.shape[-1]), int(sine.shape[-1]))
    return None if found == (dim, dim) else f"its rotary positions are {found[0]:,} wide instead of {dim:,}"
