"""What makes the layers of a model that keep their bits on its device: `forward`, which is above this package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn

from model_runtime.weights.coded.coded_rows import Coded


class LayerMaker(Protocol):
    """Makes layers that keep the file's bits on the model's device."""

    def linear(
        self, name: str, matrix: Coded, bias: torch.Tensor | None, numbers: Callable[[int, int], torch.Tensor]
    ) -> nn.Module | None:
        """The layer for a matrix of the type `name`; None if it must be de-quantised. `numbers` gives rows of it."""

    def ends(
        self,
        name: str,
        matrix: Coded,
        numbers: Callable[[int, int], torch.Tensor],
        *,
        has_head: bool,
        factor: float | None,
    ) -> tuple[nn.Module, nn.Module | None] | None:
        """The embeddings, whose rows are multiplied by `factor`, and, if the head shares their matrix, the head; None
        if they must be de-quantised."""
