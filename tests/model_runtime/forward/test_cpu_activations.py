"""Which activations a model gets where none are asked for: measured, and said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType
from torch.nn import functional

from model_runtime.forward import cpu_activations
from model_runtime.forward.cpu_activations import (
    FLOAT32,
    INT8,
    INT16,
    Activations,
    activation_bits,
    float_activations,
    has_integer_activations,
    rounding_loss,
    use_activations,
)
from model_runtime.interface.config import ModelConfig
from model_runtime.interface.errors import ModelLoadError
from model_runtime.interface.numerics import difference
from model_runtime.loading.loaded import LoadedModel
from model_runtime.loading.loading import load_model
from tests.conftest import TinyDir
from tests.model_runtime.tiny_gguf import write_gguf

IDS = [(7 * i + 3) % 500 for i in range(30)]


@pytest.fixture(scope="module")
def config(tiny_dir: TinyDir, tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    folder = tmp_path_factory.mktemp("activations")
    path = write_gguf(tiny_dir("wide_llama"), folder / "model.gguf", GGMLQuantizationType.Q4_0)
    return ModelConfig(str(path), "shipped", cache_dir=folder)


@pytest.fixture
def load(config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, float], LoadedModel]:
    def with_limits(small_bytes: int, most_loss: float) -> LoadedModel:
        monkeypatch.setattr(cpu_activations, "SMALL_BYTES", small_bytes)
        monkeypatch.setattr(cpu_activations, "MOST_LOSS", most_loss)
        return load_model(config, print)

    return with_limits


def test_a_large_model_that_loses_little_gets_bytes(load: Callable[[int, float], LoadedModel]) -> None:
    loaded = load(0, 0.5)
    assert has_integer_activations(loaded.model)
    assert loaded.quantization.endswith(", int8 activations")
    assert loaded.fingerprint.endswith("; activations: int8")
    note = next(note for note in loaded.notes if "Activations" in note)
    assert note.startswith("Activations are rounded to bytes with a scale for 32 numbers: faster, and 0.0")
    again = load(0, 0.5)
    assert (again.fingerprint, again.notes) == (loaded.fingerprint, loaded.notes)


def test_one_that_loses_more_keeps_float32_and_says_why(load: Callable[[int, float], LoadedModel]) -> None:
    loaded = load(0, -1)
    assert not has_integer_activations(loaded.model)
    assert "activations" not in loaded.quantization + loaded.fingerprint
    note = next(note for note in loaded.notes if "Activations" in note)
    assert note.startswith("Activations stay float32: as bytes, ")
    assert note.endswith("and -1 are allowed.")


def test_one_whose_logits_move_far_anywhere_keeps_float32(
    load: Callable[[int, float], LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be refused by the check of the kernels."""
    for kind in (INT8, INT16):
        monkeypatch.setitem(cpu_activations.MOST_GAPS, kind, 1e-8)
    loaded = load(0, 0.5)
    assert not has_integer_activations(loaded.model)
    assert any(note.endswith("standard deviations, and 1e-08 are allowed.") for note in loaded.notes)


def test_one_that_bytes_move_too_far_gets_two_bytes_and_says_why(
    load: Callable[[int, float], LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cpu_activations.MOST_GAPS, INT8, 1e-5)
    loaded = load(0, 0.5)
    assert activation_bits(loaded.model) == 16
    assert loaded.quantization.endswith(", int16 activations")
    assert loaded.fingerprint.endswith("; activations: int16")
    note = next(note for note in loaded.notes if "Activations" in note)
    assert note.startswith("Activations are rounded to 16 bits with a scale for 32 numbers: faster, and ")
    assert ". Bytes would move logits behind arbitrary tokens by 0.0" in note
    assert note.endswith(" standard deviations, and 1e-05 are allowed.")


def test_two_bytes_can_be_asked_for_where_codes_are_whole_numbers(config: ModelConfig, tmp_path: Path) -> None:
    from tests.model_runtime.weights.test_native_experts import written

    loaded = load_model(replace(config, cpu_activations=INT16), print)
    assert activation_bits(loaded.model) == 16
    assert (
        "Activations are rounded to 16 bits with a scale for 32 numbers, which is faster and not exact." in loaded.notes
    )
    before = load_model(replace(config, cpu_activations=INT8), print).fingerprint
    said = difference(before, loaded.fingerprint)
    assert said == "the precision of activations was changed from int8 to int16"
    directory = written("qwen3_moe", tmp_path)
    with pytest.raises(ModelLoadError, match="have whole numbers as codes, with a scale: its activations stay float32"):
        load_model(ModelConfig(str(directory), "nf4", cache_dir=tmp_path, device="cpu", cpu_activations=INT16), print)


def test_a_small_model_keeps_float32(config: ModelConfig) -> None:
    loaded = load_model(config, print)
    assert not has_integer_activations(loaded.model)
    assert not any("Activations" in note for note in loaded.notes)


def test_so_does_one_that_runs_layer_by_layer(config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its attention depends in the last bit on how a read is cut, and rounding would make more of that."""
    loaded = load_model(replace(config, cpu_activations=FLOAT32), print)
    monkeypatch.setattr(cpu_activations, "SMALL_BYTES", 0)
    assert use_activations(loaded.model, "auto", IDS, lambda _: False) == Activations(FLOAT32)
    assert use_activations(loaded.model, "auto", IDS, lambda _: True).kind == INT8


def test_the_loss_is_the_divergence_of_what_the_model_expects(config: ModelConfig) -> None:
    loaded = load_model(replace(config, cpu_activations=INT8), print)
    with torch.inference_mode():
        found = functional.log_softmax(loaded.model(torch.tensor([IDS])).logits[0, 8:].double(), -1)
        with float_activations(loaded.model):
            expected = functional.log_softmax(loaded.model(torch.tensor([IDS])).logits[0, 8:].double(), -1)
    divergence = (expected.exp() * (expected - found)).sum(-1).mean()
    assert rounding_loss(loaded.model, IDS) == pytest.approx(float(divergence), rel=1e-3)
    assert float(divergence) > 1e-7


def test_experts_take_bytes_where_these_are_asked_for(tmp_path: Path) -> None:
    from tests.model_runtime.weights.test_native_experts import written

    directory = written("qwen3_moe", tmp_path)
    config = ModelConfig(str(directory), "nf4", cache_dir=tmp_path, device="cpu", cpu_activations=INT8)
    rounded, exact = load_model(config, print), load_model(replace(config, cpu_activations="auto"), print)
    experts = next(module for module in rounded.model.modules() if type(module).__name__ == "NativeExperts")
    own = next(module for module in exact.model.modules() if type(module).__name__ == "NativeExperts")
    x, places, shares = torch.randn(40, 64), torch.tensor([[0, 2], [1, 3]] * 20), torch.rand(40, 2)
    with torch.inference_mode():
        found, expected = experts(x, places, shares), own(x, places, shares)
        assert 1e-4 < float(((found - expected) / expected.std()).square().mean().sqrt()) < 0.03
        for row in range(0, 40, 7):  # whatever other tokens there are
            one = slice(row, row + 1)
            assert torch.equal(found[one], experts(x[one], places[one], shares[one]))
