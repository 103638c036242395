"""The experts of a layer on native matrices: Mixtral's, OLMoE's, Qwen2- and Qwen3-MoE's, and all that compute alike."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.integrations.moe import _default_apply_gate

from model_runtime.weights.coded.ggml_formats import NATIVE_FORMATS
from model_runtime.weights.ggml_blocks import GgmlBlocks
from model_runtime.weights.native_matrix import COLUMNS, NativeMatrix
from model_runtime.weights.q4_blocks import read_q4_0, read_q4_1, read_q8_0
from model_runtime.weights.stored_weights import Stored

PROJECTIONS = ("gate_up_proj", "down_proj")
_READ: dict[str, Callable[[torch.Tensor], Stored]] = {"Q4_0": read_q4_0, "Q4_1": read_q4_1, "Q8_0": read_q8_0}


@dataclass(frozen=True, slots=True)
class MatrixPair:
    """Two matrices that read the same inputs, one's rows above the other's."""

    upper: NativeMatrix
    lower: NativeMatrix

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """Like `NativeMatrix.multiply`."""
        return torch.cat([self.upper.multiply(x), self.lower.multiply(x)], dim=-1)


Matrices = Mapping[str, Sequence[NativeMatrix | MatrixPair]]


class NativeExperts(nn.Module):
    """In place of a layer's experts; `matrices` has each projection's, one an expert."""

    def __init__(self, experts: Any, matrices: Matrices) -> None:
        super().__init__()
        self.num_experts, self.act_fn = int(experts.num_experts), experts.act_fn
        self.matrices = matrices
        self.hidden_bytes = sum(matrix.nbytes for matrix in self.every_matrix())

    def every_matrix(self) -> Iterator[NativeMatrix]:
        """All projections of all experts."""
        for one in (one for matrices in self.matrices.values() for one in matrices):
            yield from (one.upper, one.lower) if isinstance(one, MatrixPair) else (one,)

    def release(self) -> None:
        """Frees the matrices; the experts cannot be used afterwards."""
        self.matrices, self.hidden_bytes = {}, 0

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """`[tokens, hidden]`, the chosen experts `[tokens, k]` and their shares, to float32 `[tokens, hidden]`. Only
        chosen experts are multiplied, all their tokens at once. A token's products do not depend on other tokens, and
        its experts are added in ascending order."""
        if not self.matrices:
            raise RuntimeError("this model was unloaded")
        x = hidden_states.float()
        total = torch.zeros_like(x)
        for expert in sorted(set(top_k_index.flatten().tolist())):
            if expert >= self.num_experts:  # how transformers marks a place without an expert
                continue
            token, place = torch.where(top_k_index == expert)
            gate, up = self.matrices["gate_up_proj"][expert].multiply(x[token]).chunk(2, dim=-1)
            out = self.matrices["down_proj"][expert].multiply(self.act_fn(gate) * up)
            total.index_add_(0, token, out * top_k_weights[token, place, None])
        return total


def can_be_native(experts: Any) -> bool:
    """Whether a module's experts are gated by `act_fn(gate) * up`, without biases or norms of their own."""
    if {name for name, _ in experts.named_parameters()} != set(PROJECTIONS):
        return False
    settings = {"has_gate": True, "has_bias": False, "is_transposed": False, "is_concatenated": True}
    settings |= {"has_post_expert_norm": False, "_is_expert_parallel": False}
    is_plain = all(getattr(experts, name, None) is value for name, value in settings.items())
    is_gated = getattr(type(experts), "_apply_gate", None) is _default_apply_gate
    return is_plain and is_gated and all(p.ndim == 3 and p.shape[-1] % COLUMNS == 0 for p in experts.parameters())


def holds_experts(stored: Stored) -> bool:
    """Whether a parameter of a GGUF file stays at its bits as native matrices: blocks that the kernels read, or numbers
    of 16 bits."""
    if isinstance(stored, torch.Tensor):
        return stored.dtype in (torch.float16, torch.bfloat16)
    return isinstance(stored, GgmlBlocks) and stored.kind in NATIVE_FORMATS


def native_projection(stored: Stored, kernels: ctypes.CDLL, after_slice: Callable[[], None]) -> list[NativeMatrix]:
    """The matrices of a projection that `holds_experts`, one an expert."""
    if isinstance(stored, torch.Tensor):
        return [NativeMatrix(numbers, None, kernels, after_slice) for numbers in torch.unbind(stored)]
    assert isinstance(stored, GgmlBlocks)
    return [NativeMatrix(_matrix(rows, stored.kind), None, kernels, after_slice) for rows in torch.unbind(stored.rows)]


def _matrix(rows: torch.Tensor, kind: str) -> Stored:
    return _READ[kind](rows) if kind in _READ else GgmlBlocks(rows, kind)
