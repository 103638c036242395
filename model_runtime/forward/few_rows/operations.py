"""The operations of a forward of few rows: products, norms and attention. On CUDA they are kernels of cuda/few_rows.cu
and cuda/decode_attention.cu; the reference in torch runs anywhere and defines what they compute."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from model_runtime.architecture.decoder_layout import head_dim_of, head_norms_of, projections_of
from model_runtime.forward.arena.varlen import VarlenKernel
from model_runtime.forward.attention_options import AttentionOptions
from model_runtime.forward.few_rows.decode_attention import DecodeAttention, agrees, decode_attention_kernel
from model_runtime.forward.few_rows.four_bit_product import FourBitProduct
from model_runtime.forward.few_rows.kernels import few_rows_kernels
from model_runtime.forward.few_rows.placed_attention import Attention, PlacedAttention, Placing
from model_runtime.forward.few_rows.rms_norm import RmsNorm
from model_runtime.forward.few_rows.rotary import RotaryPlacing

logger = logging.getLogger(__name__)


class Product(Protocol):
    """`x (T, columns)` -> `(T, rows)`, added to `onto (T, rows)` if given. The memory of `onto` may be reused."""

    def __call__(self, x: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor: ...


class Operations(Protocol):
    """Makes the operations for a model's layers, once."""

    def product(self, layers: Sequence[nn.Module], norm: nn.Module | None = None) -> Product:
        """The product with all these layers, outputs concatenated, after an optional norm."""

    def gated(self, gate: nn.Module, up: nn.Module, norm: nn.Module) -> Product:
        """`silu(gate(x)) * up(x)`, after a norm."""

    def norm(self, module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        """RMSNorm of `(T, hidden)`."""

    def attention(self, layer: Any, config: Any, kernel: VarlenKernel) -> Attention:
        """The attention of a decoder layer of a model with this configuration."""


class TorchOperations:
    """The reference implementation in torch."""

    def product(self, layers: Sequence[nn.Module], norm: nn.Module | None = None) -> Product:
        def multiply(x: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
            x = x if norm is None else norm(x)
            y = torch.cat([layer(x) for layer in layers], dim=-1)
            return y if onto is None else onto + y

        return multiply

    def gated(self, gate: nn.Module, up: nn.Module, norm: nn.Module) -> Product:
        def multiply(x: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
            x = norm(x)
            y: torch.Tensor = F.silu(gate(x)) * up(x)
            return y if onto is None else onto + y

        return multiply

    def norm(self, module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        return module

    def attention(self, layer: Any, config: Any, kernel: VarlenKernel) -> Attention:
        return PlacedAttention(self.placing(layer, config), kernel, AttentionOptions(float(layer.self_attn.scaling)))

    def placing(self, layer: Any, config: Any) -> Placing:
        """Applies rotary positions to queries and keys, and writes keys and values to their rows."""
        heads, kv_heads = int(config.num_attention_heads), int(config.num_key_value_heads)
        dim = head_dim_of(config)
        query_norm, key_norm = (norm or nn.Identity() for norm in head_norms_of(layer))
        sizes = [heads, kv_heads, kv_heads]

        def place(
            projected: torch.Tensor,
            cosine: torch.Tensor,
            sine: torch.Tensor,
            slots: torch.Tensor,
            keys: torch.Tensor,
            values: torch.Tensor,
        ) -> torch.Tensor:
            query, key, value = torch.split(projected.view(len(projected), -1, dim), sizes, dim=1)
            keys.index_copy_(0, slots, _turned(key_norm(key), cosine, sine))
            values.index_copy_(0, slots, value)
            return _turned(query_norm(query), cosine, sine)

        return place


def _turned(heads: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotary positions of `(T, heads, dim)`: dimension i is rotated with dimension i + dim / 2 (Su et al. 2021, in
    transformers' layout)."""
    low, high = heads.chunk(2, dim=-1)
    return heads * cosine[:, None] + torch.cat([-high, low], dim=-1) * sine[:, None]


class CudaOperations:
    """CUDA kernels for bfloat16 and matrices that `four_bit_product.covers`. The operations must run on the engine
    thread with `device` as the current one. Raises `NvrtcUnavailable`, and what `FourBitProduct` raises."""

    def __init__(self, model: Any, device: torch.device) -> None:
        state = projections_of(model.model.layers[0])["query"].weight.quant_state
        self._device = device
        self._kernels = few_rows_kernels(device, state.state2 is not None)
        self._decode_kernel = decode_attention_kernel(device, model.config.get_text_config())
        self._is_checked = False

    def product(self, layers: Sequence[nn.Module], norm: nn.Module | None = None) -> Product:
        return FourBitProduct(layers, self._device, norm=None if norm is None else self.norm(norm))

    def gated(self, gate: nn.Module, up: nn.Module, norm: nn.Module) -> Product:
        return FourBitProduct([gate, up], self._device, is_gated=True, norm=self.norm(norm))

    def norm(self, module: nn.Module) -> RmsNorm:
        return RmsNorm(module, self._kernels.normalise, self._device)

    def attention(self, layer: Any, config: Any, kernel: VarlenKernel) -> Attention:
        placing = RotaryPlacing(layer, config, self._kernels.place, self._device)
        placed = PlacedAttention(placing, kernel, AttentionOptions(float(layer.self_attn.scaling)))
        if self._decode_kernel is None:
            return placed
        ours = DecodeAttention(layer, config, self._decode_kernel, placed)
        if not self._is_checked and not agrees(ours, placed, config, self._device):
            logger.warning("our own attention for decode steps is wrong on this device: using the flash kernel")
            self._decode_kernel = None
            return placed
        self._is_checked = True
        return ours
