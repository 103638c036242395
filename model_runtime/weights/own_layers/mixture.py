"""The experts of a layer in a published format. A checkpoint has a quantised matrix for each projection of each expert,
transformers one tensor for all experts of a layer: it would have to de-quantise them to join them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

PARTS = ("gate", "up", "down")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a matrix belongs: `module` has the experts, `expert` counts from 0, `part` is one of `PARTS`, and `name` is
    what the checkpoint calls it."""

    module: str
    expert: int
    part: str
    name: str


class StoredMixture(nn.Module):
    """In place of a layer's experts until all tensors are there: a module for each expert, with its stored matrices by
    the checkpoint's names, so that transformers finds them. Raises `ValueError` if an expert lacks one."""

    def __init__(self, experts: Any, stored: Mapping[Place, nn.Module]) -> None:
        super().__init__()
        own: Any = copy.copy(experts)
        own.__dict__["_parameters"] = dict(experts._parameters)
        self.replaced = (own,)  # in a tuple: its parameters are not among those that are loaded
        self.num_experts = int(experts.num_experts)
        wanted = {(number, part) for number in range(self.num_experts) for part in PARTS}
        if {(place.expert, place.part) for place in stored} != wanted:
            raise ValueError(
                f"the checkpoint has not all matrices of {self.num_experts} experts in one format, or has others"
            )
        for number in range(self.num_experts):
            self.add_module(str(number), nn.Module())
        for place, layer in stored.items():
            self.get_submodule(str(place.expert)).add_module(place.name, layer)
        self._names = {place.part: place.name for place in stored}

    def names(self) -> Iterator[tuple[str, str, str]]:
        """Of each expert: where gate, up and down stand, below this module."""
        for number in range(self.num_experts):
            gate, up, down = (f"{number}.{self._names[part]}" for part in PARTS)
            yield gate, up, down

    def plain(self, gate_up: list[torch.Tensor], down: list[torch.Tensor]) -> nn.Module:
        """The family's own experts, with these matrices `[N, K]`, one an expert."""
        experts: nn.Module = self.replaced[0]
        for name, matrices in (("gate_up_proj", gate_up), ("down_proj", down)):
            setattr(experts, name, nn.Parameter(torch.stack(matrices), requires_grad=False))
        return experts
