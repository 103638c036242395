"""What a model takes in memory at each precision, from its description alone: nothing of its weights is read.

The figures are lower bounds that are close: what a precision leaves out (scales of scales, padding, working memory) is
not counted, so that no model is refused that would have fitted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from model_runtime.architecture.decoder_layout import head_dim_of
from model_runtime.interface.config import Quantization
from model_runtime.loading.checks.gguf_header import GgufHeader, Items, TensorInfo, tensor_bytes
from model_runtime.weights.checkpoint_formats.stored_format import StoredFormat
from model_runtime.weights.coded.codebooks import CODEBOOKS, held_bytes
from model_runtime.weights.coded.ggml_formats import NATIVE_FORMATS
from model_runtime.weights.native_experts import can_be_native

_NF4_BYTES = 0.5 + 1 / 64  # a code, and a byte of scale for 64 of them
_HALF_BYTES = 2
# Of formats that do not say theirs in one number, and of all others.
_FEWEST_BITS = {"gptq": 4, "awq": 4, "compressed-tensors": 4, "mxfp4": 4, "bitsandbytes": 4, "fbgemm_fp8": 8}
_FEWEST_OF_OTHERS = 1
_KERNEL_COLUMNS = 32  # our own kernels need a multiple
_MATRICES = (nn.Linear, Conv1D)
# In a GGUF file, tables beside the embeddings of tokens.
_TABLES = ("position_embd.weight", "per_layer_token_embd.weight", "token_types.weight")


@dataclass(frozen=True, slots=True)
class Machine:
    """What decides how weights lie in memory: the device, and whether our own kernels run on it."""

    device: str
    has_own_kernels: bool

    @property
    def is_gpu(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def number_bytes(self) -> int:
        """Bytes of a number that is not quantised: float32 on a CPU, 16 bits on a GPU."""
        return _HALF_BYTES if self.is_gpu else 4


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes of the weights at each precision that can be asked for, and of a token's keys and values."""

    weights_bytes: dict[Quantization, int]
    kv_token_bytes: int


def checkpoint_needs(model: PreTrainedModel, stored: StoredFormat | None, machine: Machine) -> Needs:
    """`model` is the checkpoint's, on the meta device; `stored` the format of its weights."""
    parts = list(_parameters(model))
    numbers = machine.number_bytes
    config = model.config.get_text_config()
    weights: dict[Quantization, int] = {"none": sum(count for count, _, _ in parts) * numbers}
    if stored is None:
        # A table keeps 16 bits in our own kernels if it came with 16.
        table = _HALF_BYTES if machine.has_own_kernels else numbers
        has_native_experts = machine.has_own_kernels and machine.device == "cpu"
        own = list(_parameters(model, has_native_experts=has_native_experts))
        weights["nf4"] = int(_sum(own, _NF4_BYTES, numbers, table))
        weights["int8"] = int(_sum(parts, 1.0, numbers, numbers))
    elif machine.is_gpu and stored.is_own_on(machine.device, dequantises=False):
        saved = _linear_weights(model) * (numbers - _fewest_bits(stored) / 8) if machine.has_own_kernels else 0
        weights["shipped"] = weights["none"] - int(saved)
    else:
        # Which of the matrices, stacks and tables have these bits is known when their names are.
        tied = model.all_tied_weights_keys
        many = sum(p.numel() for name, p in model.named_parameters() if p.ndim > 1 and name not in tied)
        weights["shipped"] = int(many * _fewest_bits(stored) / 8)
    return Needs(weights, _kv_bytes(config) * _HALF_BYTES)


def _linear_weights(model: PreTrainedModel) -> int:
    """Weights of the linear layers, which alone keep their bits on a GPU. A head that shares the table of embeddings is
    none of them; another one is, since it may be quantised."""
    layers = ((name, module) for name, module in model.named_modules() if isinstance(module, _MATRICES))
    return sum(one.weight.numel() for name, one in layers if f"{name}.weight" not in model.all_tied_weights_keys)


def _fewest_bits(stored: StoredFormat) -> int:
    """Of its weights: a lower bound where layers differ (GPTQ's `dynamic`)."""
    if stored.is_fp8:
        return 8
    overrides = stored.settings.get("dynamic")
    others = overrides.values() if isinstance(overrides, dict) else ()
    said = [one.get("bits") for one in others if isinstance(one, dict)]
    bits = stored.bits or _FEWEST_BITS.get(stored.method, _FEWEST_OF_OTHERS)
    return min([bits, *(one for one in said if isinstance(one, int) and one > 0)])


def gguf_needs(header: GgufHeader, machine: Machine) -> Needs:
    """Of a GGUF file."""
    numbers = machine.number_bytes
    weights: dict[Quantization, int] = {"none": sum(_count(t) for t in header.tensors.values()) * numbers}
    shipped = sum(_shipped_bytes(t, machine) for t in header.tensors.values())
    weights["shipped"] = shipped if machine.has_own_kernels else weights["none"]
    # bitsandbytes quantises a float16 checkpoint that is made of the file first, in memory.
    weights["nf4"] = weights["int8"] = weights["none"] // numbers * _HALF_BYTES
    return Needs(weights, _gguf_kv_bytes(header) * _HALF_BYTES)


def _parameters(model: PreTrainedModel, *, has_native_experts: bool = False) -> Iterator[tuple[int, bool, bool]]:
    """Of each parameter, once: its numbers, whether it is a matrix of the layers, and whether it is a table. Experts
    are matrices if they run in our own kernels."""
    ends = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    for name, module in model.named_modules():
        is_table, are_experts = id(module) in ends, has_native_experts and can_be_native(module)
        for own, parameter in module.named_parameters(recurse=False):
            if f"{name}.{own}" not in model.all_tied_weights_keys:
                is_matrix = isinstance(module, _MATRICES) and own == "weight" and not is_table
                yield parameter.numel(), is_matrix or are_experts, is_table


def _sum(parts: list[tuple[int, bool, bool]], matrix: float, other: float, table: float) -> float:
    return sum(count * (matrix if is_matrix else table if is_table else other) for count, is_matrix, is_table in parts)


def _kv_bytes(config: Any) -> int:
    """Numbers of a token's keys and values; 0 for a config that does not say (latent attention has its own sizes), or
    that says it for each layer apart."""
    if getattr(config, "_heterogeneity_spec", None) is not None:
        return 0
    layers, heads = (getattr(config, name, None) for name in ("num_hidden_layers", "num_attention_heads"))
    kv_heads = getattr(config, "num_key_value_heads", None)
    if not all(isinstance(number, int) and number > 0 for number in (layers, heads, kv_heads)):
        return 0
    return 2 * int(layers or 0) * int(kv_heads or 0) * head_dim_of(config)


def _gguf_kv_bytes(header: GgufHeader) -> int:
    def own(key: str) -> int:
        value = header.metadata.get(f"{header.architecture}.{key}")
        numbers = value.numbers if isinstance(value, Items) else (value,)
        found = [int(number) for number in numbers if isinstance(number, (int, float)) and number > 0]
        return min(found, default=0)

    heads = own("attention.head_count")
    width = own("attention.key_length") or (own("embedding_length") // heads if heads else 0)
    return own("block_count") * own("attention.head_count_kv") * (width + (own("attention.value_length") or width))


def _shipped_bytes(tensor: TensorInfo, machine: Machine) -> int:
    """In our own kernels: blocks as they are, those of a codebook as levels, 16 bits where they are numbers that may be
    whole in 16, and full numbers for vectors. On a GPU other tables and stacks of matrices are numbers, too."""
    is_matrix = len(tensor.shape) > 1 and tensor.shape[-1] % _KERNEL_COLUMNS == 0
    is_linear = is_matrix and len(tensor.shape) == 2 and not tensor.name.endswith(_TABLES)
    if is_linear or (is_matrix and not machine.is_gpu):
        if tensor.kind.name in CODEBOOKS:
            return held_bytes(tensor.kind.name, _count(tensor))
        if tensor.kind.name in NATIVE_FORMATS:
            return tensor_bytes(tensor)
    return _count(tensor) * (_HALF_BYTES if is_matrix else machine.number_bytes)


def _count(tensor: TensorInfo) -> int:
    count = 1
    for size in tensor.shape:
        count *= size
    return count
