"""compressed-tensors' matrices as codes, scales and zeros.

Sources: compressed-tensors, `compressors/pack_quantized/` (`unpack_from_int32`), `quantization/lifecycle/forward.py`
(`dequantize`): a code is stored with half its range added, and so is a zero that is packed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from model_runtime.weights.coded.coded_rows import Coded
from model_runtime.weights.coded.eights import Block, coded_fp8, coded_int8, whole_numbers
from model_runtime.weights.coded.gptq import order_of
from model_runtime.weights.coded.integers import CodedIntegers, check_words, coded_integers, fields

_WORD_BITS = 32
Parts = Mapping[str, torch.Tensor]


def coded_compressed(parts: Parts, shape: tuple[int, int], blocks: Iterable[Block]) -> Coded:
    """`weight_packed` int32 `[N, K * bits / 32]`, or `weight` `[N, K]` in int8 or E4M3; `weight_scale` one number, `[N,
    1]`, `[N, groups]` or one a block; `weight_zero_point` int8 like the scale, or packed along the outputs;
    `weight_g_idx` int32 `[K]`: the group of each column. `blocks` are the sizes that the settings name. Raises
    `ValueError` for what cannot be held."""
    if "weight_packed" in parts:
        return _packed(parts, shape)
    weight, scale, zero = parts["weight"], parts["weight_scale"], parts.get("weight_zero_point")
    if tuple(weight.shape) != shape:
        raise ValueError(f"a matrix of {shape[0]} x {shape[1]} has weights of {list(weight.shape)}")
    if order_of(_stated(parts.get("weight_g_idx")), shape[1], scale.shape[-1] if scale.ndim else 1)[0] is not None:
        raise ValueError("columns in another order (actorder) without packed weights")
    block = next((b for b in blocks if tuple(scale.shape) == (-(-shape[0] // b[0]), -(-shape[1] // b[1]))), None)
    if weight.dtype == torch.int8:
        return coded_int8(weight, scale, block, zero)
    if zero is not None and bool(zero.view(torch.uint8).any()):
        raise ValueError("numbers with zero points")
    return coded_fp8(weight, scale, block)


def _packed(parts: Parts, shape: tuple[int, int]) -> CodedIntegers:
    packed, scale, zero = parts["weight_packed"], parts["weight_scale"], parts.get("weight_zero_point")
    check_words(packed)
    rows, columns = shape
    bits = packed.shape[-1] * _WORD_BITS // columns
    if bits not in (4, 8):
        raise ValueError(f"{bits} bits")
    if tuple(packed.shape) != (rows, columns * bits // _WORD_BITS) or columns * bits % _WORD_BITS:
        raise ValueError(f"a matrix of {rows} x {columns} has packed weights of {list(packed.shape)}")
    scale = scale.expand(rows, 1) if scale.numel() == 1 else scale.reshape(rows, -1)
    groups = scale.shape[1]
    order, stated = order_of(_stated(parts.get("weight_g_idx")), columns, groups)
    if stated is None and columns % groups:
        raise ValueError(f"a matrix of {rows} x {columns} has {groups} groups")

    def read(start: int, end: int) -> torch.Tensor:
        return fields(packed[start:end], bits)

    codes_of_zero = None if zero is None else _zero(zero, bits, (rows, groups))
    return coded_integers(read, bits, scale.contiguous(), codes_of_zero, stated or columns // groups, shape, order)


def _zero(zero: torch.Tensor, bits: int, shape: tuple[int, int]) -> torch.Tensor:
    """As codes, uint8 `[N, groups]`."""
    rows, groups = shape
    if zero.dtype != torch.int32:
        half = 1 << (bits - 1)
        zero = whole_numbers(zero, -half, half - 1)
        return (zero.reshape(-1, groups).expand(rows, groups) + half).to(torch.uint8)
    if tuple(zero.shape) != (-(-rows * bits // _WORD_BITS), groups):
        raise ValueError(f"a matrix with scales of {rows} x {groups} has packed zeros of {list(zero.shape)}")
    return fields(zero.t(), bits)[:, :rows].t().contiguous()


def _stated(groups: torch.Tensor | None) -> torch.Tensor | None:
    """-1 everywhere means that columns are in order."""
    return None if groups is None or bool((groups < 0).all()) else groups
