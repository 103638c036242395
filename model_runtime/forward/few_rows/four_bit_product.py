"""Products of few rows with bitsandbytes' 4-bit matrices, by our own CUDA kernels (cuda/few_rows.cu)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from model_runtime.forward.few_rows.kernels import MOST_NORMED_BYTES, few_rows_kernels
from model_runtime.forward.few_rows.rms_norm import RmsNorm

MOST_PARTS = 3


class _Matrix(ctypes.Structure):
    """`Matrix` of few_rows.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("codes", "scale_codes", "scales", "offset", "bias")),
        ("rows", ctypes.c_long),
    )


class _Product(ctypes.Structure):
    """`Product` of few_rows.cu."""

    _fields_ = (
        ("parts", _Matrix * MOST_PARTS),
        *((name, ctypes.c_void_p) for name in ("pairs", "scale_table", "x", "residual", "norm", "y")),
        *((name, ctypes.c_int) for name in ("tokens", "columns", "rows")),
        ("epsilon", ctypes.c_float),
    )


def covers(layer: nn.Module) -> bool:
    """Whether the kernels support this layer's matrix: bitsandbytes' 4 bits in blocks of 64, computed in bfloat16."""
    state = getattr(getattr(layer, "weight", None), "quant_state", None)
    if type(layer).__name__ != "Linear4bit" or state is None or state.dtype != torch.bfloat16:
        return False
    nested = state.state2
    bias = getattr(layer, "bias", None)
    return (
        state.blocksize == 64
        and (nested is None or nested.blocksize == 256)
        and int(state.shape[0]) % 16 == 0
        and int(state.shape[1]) % 256 == 0
        and (bias is None or bias.dtype == torch.bfloat16)
    )


class FourBitProduct:
    """Multiplies `x`, normalised if there is a `norm`, by the layers' matrices and concatenates the outputs. If gated,
    it computes `silu(first layer) * second layer`. Engine thread, on torch's current stream of the current device. All
    layers must be covered. Raises `ValueError` if they are packed with different tables, `NvrtcUnavailable` if there
    are no kernels."""

    def __init__(
        self, layers: Sequence[Any], device: torch.device, is_gated: bool = False, norm: RmsNorm | None = None
    ) -> None:
        states = [layer.weight.quant_state for layer in layers]
        nested = states[0].state2
        if not all(_same_tables(states[0], state) for state in states):
            raise ValueError("the matrices of one product must be packed alike")
        kernels = few_rows_kernels(device, nested is not None)
        self._device = device
        self._kernels = kernels.gated if is_gated else kernels.product
        self._norm = norm
        self.columns = int(states[0].shape[1])
        self.rows = int(states[0].shape[0]) if is_gated else sum(int(state.shape[0]) for state in states)
        self._blocks = min(self.rows // 16, self._kernels.blocks)
        self._most_normed_rows = MOST_NORMED_BYTES // (2 * self.columns)
        self._pairs = _pairs(states[0].code)  # kept alive here: the structure only holds its address
        self._product = _Product(
            (_Matrix * MOST_PARTS)(*(_matrix(layer) for layer in layers)),
            *(self._pairs.data_ptr(), None if nested is None else nested.code.data_ptr()),
            columns=self.columns,
            rows=self.rows,
        )
        if norm is not None:
            self._product.norm, self._product.epsilon = norm.weight.data_ptr(), norm.epsilon

    def __call__(self, x: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
        """`x (T, columns)` in bfloat16 with at most `MOST_ROWS` rows -> `(T, rows)`. If `onto (T, rows)` is given, the
        result is added to it in place."""
        tokens = x.shape[0]
        kernel = self._kernels.for_rows(tokens)
        if self._norm is not None and tokens <= self._most_normed_rows:
            kernel = self._kernels.normed
        elif self._norm is not None:
            x = self._norm(x)
        x = x.contiguous()
        y = x.new_empty((tokens, self.rows)) if onto is None else onto
        product = self._product
        product.x, product.y, product.tokens = x.data_ptr(), y.data_ptr(), tokens
        product.residual = None if onto is None else onto.data_ptr()
        kernel.launch((self._blocks, 1), product, torch.cuda.current_stream(self._device).cuda_stream)
        return y


def _matrix(layer: Any) -> _Matrix:
    state, nested = layer.weight.quant_state, layer.weight.quant_state.state2
    tensors = (
        *(layer.weight.data, state.absmax if nested else None, nested.absmax if nested else state.absmax),
        *(state.offset if nested else None, layer.bias),
    )
    return _Matrix(*(None if t is None else t.data_ptr() for t in tensors), int(state.shape[0]))


def _same_tables(one: Any, other: Any) -> bool:
    if (one.state2 is None) != (other.state2 is None) or one.shape[1] != other.shape[1]:
        return False
    return torch.equal(one.code, other.code) and (one.state2 is None or torch.equal(one.state2.code, other.state2.code))


def _pairs(code: torch.Tensor) -> torch.Tensor:
    """int32 `(256,)`: the two bfloat16 numbers for each byte of codes, that of the high bits in the low half."""
    bits = code.to(torch.bfloat16).view(torch.int16)
    byte = torch.arange(256, device=code.device)
    return torch.stack([bits[byte >> 4], bits[byte & 15]], dim=1).contiguous().view(torch.int32).flatten()
