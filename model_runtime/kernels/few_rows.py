"""Products of few rows with bitsandbytes' 4-bit matrices, faster than its own kernels (decision 0016).

bitsandbytes computes what a decode step or a short turn needs at 8 to 34% of an H100's bandwidth. `speed_up` puts our
kernel in front of each 4-bit layer for up to 64 rows; more rows, and what it does not cover, go where they went.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import torch
from torch import nn

from model_runtime.kernels.nvrtc import CudaModule, NvrtcUnavailable

logger = logging.getLogger(__name__)

MOST_ROWS = 64
_TILES = (8, 16, 32, 64)
_BLOCKS_A_PROCESSOR = 4
_LARGEST_ERROR = 0.02  # of the product's norm: bfloat16 rounds to 0.002 or 0.004


class _Matrix(ctypes.Structure):
    """`Matrix` of few_rows.cu."""

    _fields_ = (
        *((n, ctypes.c_void_p) for n in ("codes", "scale_codes", "scales", "scale_table", "offset", "bias", "pairs")),
        ("rows", ctypes.c_int),
        ("columns", ctypes.c_int),
    )


class _Product(ctypes.Structure):
    """`Product` of few_rows.cu."""

    _fields_ = (("matrix", _Matrix), ("x", ctypes.c_void_p), ("y", ctypes.c_void_p), ("tokens", ctypes.c_long))


def covers(layer: nn.Module) -> bool:
    """Whether the kernel can read this layer's matrix: bitsandbytes' 4 bits in blocks of 64, computed in bfloat16."""
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


def speed_up(model: nn.Module, device: torch.device) -> Callable[[], None] | None:
    """Puts the kernel in front of all layers that it covers, once it has shown on this device that it is right.
    The call that is returned takes it away again; None where nothing has changed."""
    layers = [layer for layer in model.modules() if covers(layer)]
    if device.type != "cuda" or not layers or torch.cuda.get_device_capability(device) < (8, 0):
        return None
    try:
        kernels = _kernels(device)
    except NvrtcUnavailable as error:
        logger.warning("bitsandbytes' kernels compute products of few rows, not our own: %s", error)
        return None
    products = [FewRows(layer, kernels) for layer in layers]
    if not all(_agrees(product) for product in {product.shape: product for product in products}.values()):
        logger.warning("our own products of few rows are wrong on this device: bitsandbytes' kernels run")
        return None
    for product in products:
        product.layer.forward = product

    def undo() -> None:
        for product in products:
            vars(product.layer).pop("forward", None)

    return undo


@dataclass(frozen=True, slots=True)
class _Kernels:
    """`functions` by the most rows that each multiplies; `most_blocks` is as many as the device is given at once."""

    module: CudaModule
    functions: dict[int, ctypes.c_void_p]
    most_blocks: int


@cache
def _kernels(device: torch.device) -> _Kernels:
    """Compiled once a process: an engine that is built anew finds them. Raises `NvrtcUnavailable`."""
    source = resources.files("model_runtime").joinpath("kernels", "cuda", "few_rows.cu").read_bytes()
    module = CudaModule(source, device)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    functions = {rows: module.function(f"multiply_{rows}") for rows in _TILES}
    return _Kernels(module, functions, _BLOCKS_A_PROCESSOR * processors)


class FewRows:
    """A 4-bit layer's forward. Engine thread only."""

    def __init__(self, layer: Any, kernels: _Kernels) -> None:
        state, nested = layer.weight.quant_state, layer.weight.quant_state.state2
        self.layer = layer
        self.shape = (int(state.shape[0]), int(state.shape[1]))
        self._kernels = kernels
        self._blocks = min(self.shape[0] // 16, kernels.most_blocks)
        self._pairs = _pairs(state.code)
        tensors = (
            *(layer.weight.data, state.absmax if nested else None, nested.absmax if nested else state.absmax),
            *(nested.code if nested else None, state.offset if nested else None, layer.bias, self._pairs),
        )
        self._product = _Product(_Matrix(*(None if t is None else t.data_ptr() for t in tensors), *self.shape))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`x (..., columns)` -> `(..., rows)`."""
        tokens = x.numel() // x.shape[-1]
        if tokens > MOST_ROWS or x.dtype != torch.bfloat16:
            return torch.as_tensor(type(self.layer).forward(self.layer, x))
        x = x.contiguous()
        y = x.new_empty((*x.shape[:-1], self.shape[0]))
        product = self._product
        product.x, product.y, product.tokens = x.data_ptr(), y.data_ptr(), tokens
        function = self._kernels.functions[next(rows for rows in _TILES if rows >= tokens)]
        self._kernels.module.launch(function, self._blocks, 256, product)
        return y


def _pairs(code: torch.Tensor) -> torch.Tensor:
    """int32 `(256,)`: the two bfloat16 numbers of a byte of codes, the high bits' number in the low half."""
    bits = code.to(torch.bfloat16).view(torch.int16)
    byte = torch.arange(256, device=code.device)
    return torch.stack([bits[byte >> 4], bits[byte & 15]], dim=1).contiguous().view(torch.int32).flatten()


@torch.inference_mode()
def _agrees(product: FewRows) -> bool:
    generator = torch.Generator(product.layer.weight.device).manual_seed(7)
    for tokens in (1, 13, MOST_ROWS):
        x = torch.randn((tokens, product.shape[1]), generator=generator, device=generator.device, dtype=torch.bfloat16)
        expected = type(product.layer).forward(product.layer, x).float()
        if not float((product(x).float() - expected).norm() / expected.norm()) <= _LARGEST_ERROR:
            return False
    return True
