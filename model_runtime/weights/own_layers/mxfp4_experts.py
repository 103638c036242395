"""The experts of gpt-oss in MXFP4: their tensors as the checkpoint has them, and experts that run on these."""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from model_runtime.weights.coded.levels import CodedLevels
from model_runtime.weights.coded.numbers import dequantised_rows
from model_runtime.weights.native_matrix import NativeMatrix

METHOD = "mxfp4"
_PROJECTIONS = ("gate_up_proj", "down_proj")
_COLUMNS, _BYTES = 32, 16  # of a block


class StoredExperts(nn.Module):
    """The blocks `[experts, N, K/32, 16]` and exponents `[experts, N, K/32]` of a layer's experts, and their biases."""

    def __init__(self, experts: Any) -> None:
        super().__init__()
        own: Any = copy.copy(experts)
        own.__dict__["_parameters"] = dict(experts._parameters)
        self.replaced = (own,)  # in a tuple: its parameters are not among those that are loaded
        for name in _PROJECTIONS:
            count, columns, rows = getattr(experts, name).shape
            shape = (count, rows, columns // _COLUMNS)
            for part, size in (("blocks", (*shape, _BYTES)), ("scales", shape)):
                empty = torch.empty(size, dtype=torch.uint8, device="meta")
                self.register_parameter(f"{name}_{part}", nn.Parameter(empty, requires_grad=False))
            self.register_parameter(f"{name}_bias", getattr(experts, f"{name}_bias"))

    def coded(self, name: str) -> list[CodedLevels]:
        """The matrices `[N, K]` of a projection, one an expert."""
        blocks, scales = (self.get_parameter(f"{name}_{part}").detach().cpu() for part in ("blocks", "scales"))
        return [CodedLevels(*parts) for parts in zip(blocks, scales, strict=True)]

    def forget(self, name: str) -> None:
        """Frees a projection's tensors."""
        for part in ("blocks", "scales"):
            delattr(self, f"{name}_{part}")


class OwnExperts(nn.Module):
    """gpt-oss's experts on native matrices. Raises `ValueError` for exponents whose numbers are not finite."""

    def __init__(self, stored: StoredExperts, kernels: ctypes.CDLL) -> None:
        super().__init__()
        (own,) = stored.replaced
        self.num_experts, self.alpha, self.limit = own.num_experts, own.alpha, own.limit
        self._gate = type(own)._apply_gate
        self.matrices: dict[str, list[NativeMatrix]] = {}
        for name in _PROJECTIONS:
            bias = stored.get_parameter(f"{name}_bias").detach().float()
            coded = stored.coded(name)
            self.matrices[name] = [NativeMatrix(one, bias[i], kernels) for i, one in enumerate(coded)]
            del coded
            stored.forget(name)
        self.hidden_bytes = sum(matrix.nbytes for matrix in self._all())

    def _all(self) -> Iterable[NativeMatrix]:
        return (matrix for matrices in self.matrices.values() for matrix in matrices)

    @property
    def weights(self) -> int:
        """How many weights they have."""
        return sum(matrix.rows * matrix.columns for matrix in self._all())

    def release(self) -> None:
        """Frees the matrices; the experts cannot be used afterwards."""
        self.matrices, self.hidden_bytes = {}, 0

    def forward(
        self, hidden_states: torch.Tensor, router_indices: torch.Tensor, routing_weights: torch.Tensor
    ) -> torch.Tensor:
        """`[tokens, hidden]`, the chosen experts `[tokens, k]` and their shares, to float32 `[tokens, hidden]`. An
        expert's products for a token do not depend on other tokens, and experts are added in one order."""
        if not self.matrices:
            raise RuntimeError("this model was unloaded")
        x = hidden_states.float()
        total = torch.zeros_like(x)
        for expert in sorted(set(router_indices.flatten().tolist())):
            token, place = torch.where(router_indices == expert)
            gated = self._gate(self, self.matrices["gate_up_proj"][expert].multiply(x[token]))
            out = self.matrices["down_proj"][expert].multiply(gated)
            total.index_add_(0, token, out * routing_weights[token, place, None])
        return total


def plain_experts(stored: StoredExperts, dtype: torch.dtype, device: str) -> nn.Module:
    """gpt-oss's own experts with the numbers that the blocks mean, rounded once to `dtype`."""
    experts: nn.Module = stored.replaced[0]
    for name in _PROJECTIONS:
        numbers = torch.stack([dequantised_rows(one, dtype).t() for one in stored.coded(name)]).contiguous()
        setattr(experts, name, nn.Parameter(numbers.to(device), requires_grad=False))
        bias = stored.get_parameter(f"{name}_bias").detach().to(device=device, dtype=dtype)
        setattr(experts, f"{name}_bias", nn.Parameter(bias, requires_grad=False))
        stored.forget(name)
    return experts
