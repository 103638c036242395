"""Replaces bitsandbytes' 4-bit products of few rows by our own (decision 0016).

For a decode step or a short turn, bitsandbytes reaches 8 to 34% of an H100's bandwidth. `speed_up` makes each 4-bit
layer use our kernel for up to 64 rows; more rows, and layers that are not covered, use the original code.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from model_runtime.forward.few_rows.four_bit_product import FourBitProduct, covers
from model_runtime.forward.few_rows.kernels import MOST_ROWS
from model_runtime.forward.few_rows.nvrtc import NvrtcUnavailable

logger = logging.getLogger(__name__)

_LARGEST_ERROR = 0.02  # of the product's norm: bfloat16 rounds to 0.002 or 0.004


def speed_up(model: nn.Module, device: torch.device) -> Callable[[], None] | None:
    """Makes all layers that the kernel covers use it, after it has proved correct on this device. Returns a function
    that undoes this; None if nothing has changed."""
    layers = [layer for layer in model.modules() if covers(layer)]
    if device.type != "cuda" or not layers or torch.cuda.get_device_capability(device) < (8, 0):
        return None
    try:
        products = [FewRows(layer, device) for layer in layers]
    except NvrtcUnavailable as error:
        logger.warning("products of few rows use bitsandbytes' kernels, not our own: %s", error)
        return None
    shapes = {(product.product.rows, product.product.columns): product for product in products}
    if not all(_agrees(product) for product in shapes.values()):
        logger.warning("our own products of few rows are wrong on this device: using bitsandbytes' kernels")
        return None
    for product in products:
        product.layer.forward = product

    def undo() -> None:
        for product in products:
            vars(product.layer).pop("forward", None)

    return undo


class FewRows:
    """The replaced forward of a 4-bit layer. Engine thread only."""

    def __init__(self, layer: Any, device: torch.device) -> None:
        self.layer = layer
        self.product = FourBitProduct([layer], device)
        self._device = device

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`x (..., columns)` -> `(..., rows)`."""
        if x.numel() // x.shape[-1] > MOST_ROWS or x.dtype != torch.bfloat16:
            return torch.as_tensor(type(self.layer).forward(self.layer, x))
        with torch.cuda.device(self._device):
            return self.product(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], self.product.rows)


@torch.inference_mode()
def _agrees(layer: FewRows) -> bool:
    device = layer.layer.weight.device
    generator = torch.Generator(device).manual_seed(7)
    for tokens in (1, 13, MOST_ROWS):
        x = torch.randn((tokens, layer.product.columns), generator=generator, device=device, dtype=torch.bfloat16)
        expected = type(layer.layer).forward(layer.layer, x).float()
        if not float((layer(x).float() - expected).norm() / expected.norm()) <= _LARGEST_ERROR:
            return False
    return True
