"""Which tensors of a GGUF file make which parameter of the model, and how.

Sources: gguf's tensor name maps, and what llama.cpp's convert_hf_to_gguf.py changes on the way, undone here. Each
tensor is used, known to be irrelevant, or a reason to refuse the file with its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from accelerate import init_empty_weights
from gguf import TensorNameMap, get_tensor_name_map
from gguf.constants import MODEL_ARCH_NAMES
from transformers import AutoModelForCausalLM, PretrainedConfig

from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.checks.gguf_header import GgufHeader
from model_runtime.loading.gguf.metadata import Metadata

Rows = np.ndarray[Any, Any]
Shape = tuple[int, ...]
_EXPERTS = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.(gate_up_proj|down_proj)")
_LACKS_BIASES = ("llama", "qwen3", "qwen3moe")  # transformers' configs have all biases of a kind or none
_OPTIONAL_BIASES = re.compile(r"\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.bias$")
_MOVED_BY_ONE = ("gemma2", "gemma3", "nemotron")  # their norms are stored as 1 + weight
_TRANSPOSED = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")
_IRRELEVANT = re.compile(
    r"blk\.\d+\.attn_rot_embd(\.weight)?"
)  # old converters wrote the frequencies of `rope.freq_base`


@dataclass(frozen=True, slots=True)
class Source:
    """The tensors of one parameter of the given shape: several are stacked along their second dimension, none means
    zeros. `order` moves whole rows, which blocks survive. `change` computes, on float32."""

    tensors: tuple[str, ...]
    shape: Shape
    order: Callable[[Rows], Rows] | None = None
    change: Callable[[Rows], Rows] | None = None


def plan_parameters(metadata: Metadata, config: PretrainedConfig) -> dict[str, Source]:
    """A source for every parameter of the model that `config` describes. Raises `ModelLoadError` for a tensor that is
    missing, left over, or of another shape than the model's."""
    header = metadata.header
    names = _names(header.architecture, config.num_hidden_layers)
    plan: dict[str, Source] = {}
    for parameter, shape in _parameter_shapes(config).items():
        if not (parameter == "lm_head.weight" and config.tie_word_embeddings):
            plan[parameter] = _source(parameter, shape, header, names, config)
    used = {tensor for source in plan.values() for tensor in source.tensors} | metadata.read_tensors
    left = sorted(tensor for tensor in header.tensors if tensor not in used and not _IRRELEVANT.fullmatch(tensor))
    if left:
        raise ModelLoadError(
            f"{metadata.path.name} cannot be used: Keepwarm has no place for its tensor {left[0]} in a model of the "
            f"architecture '{header.architecture}', and would answer without it."
        )
    return plan


def _source(
    parameter: str, shape: Shape, header: GgufHeader, names: Callable[[str], str | None], config: PretrainedConfig
) -> Source:
    tensors = _tensors_of(parameter, names)
    may_lack = header.architecture in _LACKS_BIASES and _OPTIONAL_BIASES.search(parameter)
    if may_lack and tensors[0] not in header.tensors:
        return Source((), shape)
    for tensor in tensors:
        if tensor not in header.tensors:
            raise ModelLoadError(f"The file has no tensor for {parameter}.")
    source = Source(tensors, shape, _order(tensors[0], header.architecture, config))
    if header.architecture in _MOVED_BY_ONE and parameter.endswith("norm.weight"):
        source = Source(tensors, shape, change=_minus_one)
    elif header.architecture == "gpt2" and _TRANSPOSED.search(parameter):
        source = Source(tensors, shape, change=np.transpose)
    elif parameter.endswith("shared_expert_gate.weight"):
        source = Source(tensors, shape, change=lambda row: row.reshape(1, -1))
    _check_shapes(source, header)
    return source


def _tensors_of(parameter: str, names: Callable[[str], str | None]) -> tuple[str, ...]:
    expert = _EXPERTS.fullmatch(parameter)
    if expert:
        parts = ("gate", "up") if expert.group(2) == "gate_up_proj" else ("down",)
        return tuple(f"blk.{expert.group(1)}.ffn_{part}_exps.weight" for part in parts)
    base, _, suffix = parameter.rpartition(".")
    return (f"{names(base)}.{suffix}",)


def _check_shapes(source: Source, header: GgufHeader) -> None:
    shapes = [header.tensors[tensor].shape for tensor in source.tensors]
    expected = source.shape
    if source.change is np.transpose:
        expected = expected[::-1]
    elif len(shapes) > 1:
        expected = (expected[0], expected[1] // len(shapes), *expected[2:])
    for tensor, found in zip(source.tensors, shapes, strict=True):
        is_flat = expected[:1] == (1,) and found == expected[1:]
        if found != expected and not is_flat:
            raise ModelLoadError(
                f"The file's tensor {tensor} has the shape {list(found)}, but its metadata describes a model with "
                f"{list(expected)} there. Download it again, or from another source."
            )


def _order(tensor: str, architecture: str, config: PretrainedConfig) -> Callable[[Rows], Rows] | None:
    if architecture == "llama" and ".attn_q." in tensor:
        return _unpaired(config.num_attention_heads)
    if architecture == "llama" and ".attn_k." in tensor:
        return _unpaired(config.num_key_value_heads)
    if architecture == "bloom" and ".attn_qkv." in tensor:
        return _grouped(config.n_head, 1)
    if architecture == "falcon" and ".attn_qkv." in tensor and config.new_decoder_architecture:
        return _grouped(config.num_kv_heads, config.num_attention_heads // config.num_kv_heads)
    return None


def _unpaired(heads: int) -> Callable[[Rows], Rows]:
    """llama.cpp stores a head's rotary pairs side by side, transformers as two halves (convert_hf_to_gguf, permute)."""

    def order(rows: Rows) -> Rows:
        pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
        return pairs.swapaxes(1, 2).reshape(rows.shape)

    return order


def _grouped(groups: int, queries: int) -> Callable[[Rows], Rows]:
    """llama.cpp stores all queries, all keys, all values; transformers each group's queries, key and value."""

    def order(rows: Rows) -> Rows:
        dim = rows.shape[0] // (groups * (queries + 2))
        ends = (groups * queries * dim, groups * (queries + 1) * dim)
        parts = [part.reshape(groups, -1, dim, *rows.shape[1:]) for part in np.split(rows, ends)]
        return np.concatenate(parts, axis=1).reshape(rows.shape)

    return order


def _minus_one(weight: Rows) -> Rows:
    return weight - np.float32(1)


def _names(architecture: str, layers: int) -> Callable[[str], str | None]:
    number = next(key for key, value in MODEL_ARCH_NAMES.items() if value == architecture)
    known: TensorNameMap = get_tensor_name_map(number, layers)

    def name_of(module: str) -> str | None:
        # Bloom's were written down without the name of its inner model.
        found: str | None = known.get_name(module) or known.get_name(module.removeprefix("transformer."))
        return found

    return name_of


def _parameter_shapes(config: PretrainedConfig) -> Mapping[str, Shape]:
    with init_empty_weights(include_buffers=True):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)}
    lost = sorted(model.state_dict().keys() - shapes.keys())
    if lost:  # a saved buffer: none of the architectures here has one
        raise ModelLoadError(f"{type(model).__name__} keeps {lost[0]} outside its parameters.")
    return shapes
