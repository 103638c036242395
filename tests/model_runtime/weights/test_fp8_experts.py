"""The experts that transformers puts in place of a family's own ones compute the same, or are refused by name."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.integrations.finegrained_fp8 import FP8Experts

from model_runtime.interface.errors import ModelLoadError
from model_runtime.weights.checkpoint_formats.fp8_experts import refuse_other_experts

FAMILIES = (
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "deepseek_v3",
    "glm4_moe",
    "granitemoe",
    "olmoe",
    "phimoe",
    "minimax_m2",
)


def model_of(family: str, **settings: Any) -> PreTrainedModel:
    config = AutoConfig.for_model(family, num_hidden_layers=4, **settings)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def pairs(model: PreTrainedModel, replacement: type[FP8Experts] = FP8Experts) -> dict[str, tuple[Any, Any]]:
    with torch.device("meta"):
        return {
            name: (module, replacement(model.config, block_size=(128, 128)))
            for name, module in model.named_modules()
            if name.endswith(".experts")
        }


@pytest.mark.parametrize("family", FAMILIES)
def test_the_families_whose_experts_are_the_same(family: str) -> None:
    found = pairs(model_of(family))
    assert found
    refuse_other_experts(family, found)


@pytest.mark.parametrize("activation", ["gelu", "relu", "gelu_pytorch_tanh"])
def test_another_activation_of_the_config_is_followed(activation: str) -> None:
    refuse_other_experts("mixtral", pairs(model_of("mixtral", hidden_act=activation)))


class Clamped(FP8Experts):  # type: ignore[misc]
    """Differs only where the activations are large."""

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return self.act_fn(gate.clamp(max=200.0)) * up


class Swapped(FP8Experts):  # type: ignore[misc]
    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        up, gate = gate_up.chunk(2, dim=-1)
        return self.act_fn(gate) * up


class Interleaved(FP8Experts):  # type: ignore[misc]
    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        return self.act_fn(gate_up[..., ::2]) * gate_up[..., 1::2]


class Unweighted(FP8Experts):  # type: ignore[misc]
    def forward(self, hidden: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        # Its own formula, without the kernels that may stand for it.
        computed: torch.Tensor = inspect.unwrap(FP8Experts.forward)(self, hidden, chosen, torch.ones_like(shares))
        return computed


@pytest.mark.parametrize("replacement", [Clamped, Swapped, Interleaved, Unweighted])
def test_a_formula_that_differs_is_refused(replacement: type[FP8Experts]) -> None:
    with pytest.raises(ModelLoadError, match=r"cannot run in FP8: its experts \(model.layers.0.mlp.experts\)"):
        refuse_other_experts("mixtral", pairs(model_of("mixtral"), replacement))


def test_a_setting_that_only_the_replacement_reads_is_refused() -> None:
    """Mixtral's own experts know no such limit; the class that replaces them would clamp."""
    with pytest.raises(ModelLoadError, match="--quantization none"):
        refuse_other_experts("mixtral", pairs(model_of("mixtral", swiglu_limit=2.0)))


def test_biases_and_transposed_weights_are_refused() -> None:
    with pytest.raises(ModelLoadError, match="formula of their own"):
        refuse_other_experts("gpt_oss", pairs(model_of("gpt_oss")))


@pytest.fixture(autouse=True)
def plain_experts() -> Iterator[None]:
    """transformers' class keeps its own forward."""
    forward = FP8Experts.forward
    yield
    assert FP8Experts.forward is forward
