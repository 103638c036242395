"""Mixtures of experts at 4 bits: every expert is quantised while it is read, and computes what its numbers mean."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bitsandbytes import functional
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from model_runtime.interface.config import ModelConfig, Quantization
from model_runtime.loading.loaded import LoadedModel
from model_runtime.loading.loading import load_model, unload
from model_runtime.weights.native_experts import NativeExperts, can_be_native
from model_runtime.weights.streamed import StreamedCheckpoint
from tests.model_runtime.tiny_models import CONTEXT_TOKENS, VOCABULARY_TOKENS, save_tiny, token_ids

SHARED = {
    "vocab_size": VOCABULARY_TOKENS,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": CONTEXT_TOKENS,
}
FAMILIES: dict[str, tuple[type[PreTrainedModel], type[PretrainedConfig], dict[str, int]]] = {
    "mixtral": (MixtralForCausalLM, MixtralConfig, {"num_local_experts": 4, "intermediate_size": 128}),
    "olmoe": (OlmoeForCausalLM, OlmoeConfig, {"num_experts": 4, "intermediate_size": 128}),
    "qwen3_moe": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig,
        {"num_experts": 4, "intermediate_size": 128, "moe_intermediate_size": 128, "head_dim": 16},
    ),
}


def written(family: str, folder: Path) -> Path:
    model, config, own = FAMILIES[family]
    return save_tiny(model, config(**SHARED, **own, **token_ids()), folder / family)


def load(directory: Path, mode: Quantization, cache: Path) -> LoadedModel:
    return load_model(ModelConfig(str(directory), mode, cache_dir=cache, device="cpu"), lambda _: None)


@torch.inference_mode()
def logits(loaded: LoadedModel) -> torch.Tensor:
    ids = torch.arange(40).remainder(VOCABULARY_TOKENS).view(2, 20)
    found: torch.Tensor = loaded.model(ids, use_cache=False).logits
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_run_at_four_bits(family: str, tmp_path: Path) -> None:
    directory = written(family, tmp_path)
    loaded, plain = load(directory, "nf4", tmp_path), load(directory, "none", tmp_path)
    assert loaded.quantization == "4-bit NF4 (bitsandbytes)"
    experts = {name: module for name, module in loaded.model.named_modules() if isinstance(module, NativeExperts)}
    assert len(experts) == 2
    x, places = torch.randn(9, 64), torch.tensor([[0, 2], [1, 3], [2, 0]] * 3)
    shares = torch.rand(9, 2)
    for name, module in experts.items():
        own = plain.model.get_submodule(name)
        assert can_be_native(own)
        for projection, matrices in module.matrices.items():
            numbers = own.get_parameter(projection).detach()
            expected = [functional.dequantize_4bit(*quantised(one)) for one in numbers]
            found = torch.stack([matrix.take(torch.arange(matrix.rows)) for matrix in matrices])
            assert torch.equal(found, torch.stack(expected))
            numbers.copy_(found)
        with torch.inference_mode():
            torch.testing.assert_close(module(x, places, shares), own(x, places, shares), rtol=0, atol=1e-4)
            for row in range(9):  # whatever other tokens there are
                one = slice(row, row + 1)
                assert torch.equal(module(x, places, shares)[one], module(x[one], places[one], shares[one]))
    assert loaded.weights_bytes < 0.5 * plain.weights_bytes
    unload(loaded)
    with pytest.raises(RuntimeError, match="unloaded"):
        next(iter(experts.values()))(x, places, shares)


def quantised(numbers: torch.Tensor) -> tuple[torch.Tensor, functional.QuantState]:
    packed, state = functional.quantize_4bit(numbers.contiguous(), compress_statistics=True, quant_type="nf4")
    return packed, state


@pytest.mark.parametrize("family", FAMILIES)
def test_joined_experts_are_those_that_transformers_joins(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = written(family, tmp_path)
    streamed = load(directory, "none", tmp_path)
    monkeypatch.setattr(StreamedCheckpoint, "can_be_streamed", property(lambda _: False))
    whole = load(directory, "none", tmp_path)
    expected = whole.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in streamed.model.state_dict().items())
    assert torch.equal(logits(streamed), logits(whole))
    assert streamed.fingerprint == whole.fingerprint
