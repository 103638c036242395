"""Applies rotary positions and writes keys and values to the arena, on CUDA by a kernel of cuda/few_rows.cu."""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from model_runtime.architecture.decoder_layout import head_dim_of, head_norms_of
from model_runtime.forward.few_rows.nvrtc import CudaKernel

_HEADS_A_BLOCK = 4


class _Placing(ctypes.Structure):
    """`Placing` of few_rows.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("projected", "query_norm", "key_norm", "cosine", "sine", "slots")),
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
        *((name, ctypes.c_int) for name in ("heads", "kv_heads", "dim")),
        ("epsilon", ctypes.c_float),
    )


def head_norm_fields(layer: Any) -> dict[str, Any]:
    """A kernel's arguments for a layer's head norms: the addresses of their weights, None if there are none."""
    norms = head_norms_of(layer)
    query_norm, key_norm = (None if norm is None else norm.weight.data_ptr() for norm in norms)
    epsilon = next((norm.variance_epsilon for norm in norms if norm is not None), 0.0)
    return {"query_norm": query_norm, "key_norm": key_norm, "epsilon": epsilon}


class RotaryPlacing:
    """A `placed_attention.Placing` in bfloat16. Engine thread, on torch's current stream of the current device."""

    def __init__(self, layer: Any, config: Any, kernel: CudaKernel, device: torch.device) -> None:
        self._kernel, self._device = kernel, device
        self._heads, self._dim = int(config.num_attention_heads), head_dim_of(config)
        self._all_heads = self._heads + 2 * int(config.num_key_value_heads)
        self._placing = _Placing(
            heads=self._heads,
            kv_heads=int(config.num_key_value_heads),
            dim=self._dim,
            **head_norm_fields(layer),
        )

    def __call__(
        self,
        projected: torch.Tensor,
        cosine: torch.Tensor,
        sine: torch.Tensor,
        slots: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> torch.Tensor:
        placing, tokens = self._placing, projected.shape[0]
        placing.projected, placing.slots = projected.data_ptr(), slots.data_ptr()
        placing.cosine, placing.sine = cosine.data_ptr(), sine.data_ptr()
        placing.keys, placing.values = keys.data_ptr(), values.data_ptr()
        blocks = (-(-self._all_heads // _HEADS_A_BLOCK), tokens)
        self._kernel.launch(blocks, placing, torch.cuda.current_stream(self._device).cuda_stream)
        return projected.view(tokens, self._all_heads, self._dim)[:, : self._heads]
