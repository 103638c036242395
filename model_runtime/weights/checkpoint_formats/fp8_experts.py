"""Whether the experts of a model compute the same as the FP8 experts that take their place.

transformers puts one class in the place of all families' experts. It reads the activation, its clamps and its factors
from the names that they have in some families' configs; other families have other names, or formulas of their own.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from model_runtime.interface.errors import ModelLoadError

_EXPERTS, _HIDDEN, _INNER, _TOKENS = 3, 8, 6, 16
_SCALES = (0.3, 3.0, 30.0, 300.0)  # of the activations: what a clamp or a soft cap changes shows in one of them
_SHAPES = {
    "gate_up_proj": (_EXPERTS, 2 * _INNER, _HIDDEN),
    "up_proj": (_EXPERTS, _INNER, _HIDDEN),
    "down_proj": (_EXPERTS, _HIDDEN, _INNER),
}


@torch.no_grad()
def refuse_other_experts(model_name: str, pairs: Mapping[str, tuple[nn.Module, nn.Module]]) -> None:
    """Raises `ModelLoadError` unless both experts of every pair, the family's own ones and those that replace them,
    compute the same from the same small float32 weights. `pairs` are by the names of the modules."""
    for name, (own, replacement) in pairs.items():
        with torch.device("cpu"):  # transformers builds a model on the meta device
            are_equal = _are_equal(own, replacement)
        if not are_equal:
            raise ModelLoadError(
                f"{model_name} cannot run in FP8: its experts ({name}) have a formula of their own, which differs from "
                "that of the FP8 experts. --quantization none runs it de-quantised."
            )


def _are_equal(own: nn.Module, replacement: nn.Module) -> bool:
    names = [name for name in ("gate_up_proj", "up_proj", "down_proj") if _has(replacement, name)]
    if {name for name, _ in own.named_parameters()} != set(names):
        return False  # biases, norms, or a list of experts
    if any(getattr(own, name).shape != getattr(replacement, name).shape for name in names):
        return False  # transposed
    draw = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(_SHAPES[name], generator=draw, dtype=torch.float32) for name in names}
    ones = {f"{name}_{kind}": torch.ones(_EXPERTS) for name in names for kind in ("scale_inv", "activation_scale")}
    hidden = torch.randn(_TOKENS, _HIDDEN, generator=draw, dtype=torch.float32)
    chosen = torch.stack([torch.randperm(_EXPERTS, generator=draw)[:2] for _ in range(_TOKENS)])
    shares = torch.rand(_TOKENS, 2, generator=draw, dtype=torch.float32)
    for scale in _SCALES:
        try:
            expected = _computed(own, weights, hidden * scale, chosen, shares)
        except Exception:  # whatever it needs, the replacement does not have it
            return False
        found = _computed(replacement, weights | ones, hidden * scale, chosen, shares)
        if expected.shape != found.shape or not _is_close(found, expected):
            return False
    return True


def _computed(module: nn.Module, weights: Mapping[str, torch.Tensor], *arguments: torch.Tensor) -> torch.Tensor:
    """What the module computes with these weights in place of its own, without the kernels that may stand for it."""
    twin: Any = copy.copy(module)
    twin.__dict__["_parameters"] = dict(weights)
    twin.num_experts = _EXPERTS
    forward: Callable[..., torch.Tensor] = inspect.unwrap(type(module).forward)
    return forward(twin, *arguments)


def _has(module: nn.Module, name: str) -> bool:
    return getattr(module, name, None) is not None


def _is_close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool(torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())))
