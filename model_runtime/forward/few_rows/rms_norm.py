"""RMSNorm on CUDA, by a kernel of cuda/few_rows.cu."""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from model_runtime.forward.few_rows.nvrtc import CudaKernel


class _Norm(ctypes.Structure):
    """`Norm` of few_rows.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "weight", "y")),
        ("width", ctypes.c_int),
        ("epsilon", ctypes.c_float),
    )


class RmsNorm:
    """A transformers RMSNorm in bfloat16. Engine thread, on torch's current stream of the current device."""

    def __init__(self, module: Any, kernel: CudaKernel, device: torch.device) -> None:
        self.weight: torch.Tensor = module.weight
        self.epsilon = float(module.variance_epsilon)
        self._kernel, self._device = kernel, device
        self._norm = _Norm(weight=self.weight.data_ptr(), width=self.weight.shape[0], epsilon=self.epsilon)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`(T, width)` -> the same shape; width a multiple of 8."""
        x = x.contiguous()
        y = torch.empty_like(x)
        self._norm.x, self._norm.y = x.data_ptr(), y.data_ptr()
        self._kernel.launch((x.shape[0], 1), self._norm, torch.cuda.current_stream(self._device).cuda_stream)
        return y
