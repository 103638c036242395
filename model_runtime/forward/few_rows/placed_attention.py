"""Attention of few rows in two steps: rotary positions are applied and keys and values written to the arena, then the
variable-length kernel runs."""

from __future__ import annotations

from typing import Protocol

import torch

from model_runtime.forward.arena.step_inputs import StepTensors
from model_runtime.forward.arena.varlen import VarlenKernel
from model_runtime.forward.attention_options import AttentionOptions


class Placing(Protocol):
    """Takes a layer's queries, keys and values `(T, (heads + 2 kv_heads) * dim)`: normalises each head of queries and
    keys if the layer does, rotates them by `cosine` and `sine (T, dim)`, writes keys and values to the rows `slots (T)`
    of the arena's `(rows, kv_heads, dim)`, and returns the queries `(T, heads, dim)`, possibly in the same memory."""

    def __call__(
        self,
        projected: torch.Tensor,
        cosine: torch.Tensor,
        sine: torch.Tensor,
        slots: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> torch.Tensor: ...


class Attention(Protocol):
    """Takes a layer's queries, keys and values for a step's `T` rows like `Placing`, appends keys and values to the
    layer's arena and returns the attention output `(T, heads * dim)`."""

    def __call__(
        self,
        projected: torch.Tensor,
        cosine: torch.Tensor,
        sine: torch.Tensor,
        step: StepTensors,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> torch.Tensor: ...


class PlacedAttention:
    """An `Attention` for any step."""

    def __init__(self, placing: Placing, kernel: VarlenKernel, options: AttentionOptions) -> None:
        self._placing, self._kernel, self._options = placing, kernel, options

    def __call__(
        self,
        projected: torch.Tensor,
        cosine: torch.Tensor,
        sine: torch.Tensor,
        step: StepTensors,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> torch.Tensor:
        query = self._placing(projected, cosine, sine, step.slots, keys, values)
        return self._kernel.attend(query, keys, values, step.table, self._options).flatten(1)
