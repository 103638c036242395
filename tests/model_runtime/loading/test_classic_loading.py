"""The classic families from a directory: at their own bits, in NF4 and in int8, under their published names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model_runtime.interface.config import ModelConfig, Quantization
from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.loaded import LoadedModel
from model_runtime.loading.loading import context_limit_tokens, load_model
from model_runtime.weights.coded.coded_rows import Kind
from model_runtime.weights.native_matrix import NativeLinear
from tests.model_runtime.harness import WatchedEngine, full_read
from tests.model_runtime.tiny_classic import CONFIGS, LAYERS, tiny_classic

# Quantised matrices of a layer: queries, keys and values, the output, two of the feed-forward; more where not fused.
MATRICES = {"gptj": 6, "gpt-neo": 6, "xglm": 6}
QUANTISED = ("falcon-groups", "falcon-alibi", "bloom", "mpt-plain", "gptj", "codegen", "gpt-neo", "xglm", "gpt")


def load(directory: Path, cache_dir: Path, quantization: Quantization) -> LoadedModel:
    return load_model(ModelConfig(str(directory), quantization, cache_dir=cache_dir, device="cpu"), print)


def gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().mean() / expected.std())


def is_quantised(module: torch.nn.Module) -> bool:
    """Whether it is a layer in four or eight bits in our own kernels, or bitsandbytes': of eight bits where rows do not
    fit the kernels, and of four bits where blocks cross the ends of rows (48 columns)."""
    coded = (Kind.LEVELS, Kind.INT8)
    own = isinstance(module, NativeLinear) and module.matrix is not None and module.matrix.kind in coded
    return own or type(module).__name__ in ("Linear4bit", "Linear8bitLt")


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("name", QUANTISED)
def test_a_quantised_model_answers_as_it_reads(name: str, quantization: Quantization, tmp_path: Path) -> None:
    directory = tiny_classic(name, tmp_path / name)
    exact, loaded = load(directory, tmp_path, "none"), load(directory, tmp_path, quantization)
    layers = 4 if name == "gpt-neo" else LAYERS
    matrices = sum(is_quantised(module) for module in loaded.model.modules())
    assert matrices == layers * MATRICES.get(name, 4)
    ledger = [(7 * i + 3) % 500 + 3 for i in range(60)]
    read = full_read(loaded.model, ledger)
    assert 0 < gap(read, full_read(exact.model, ledger)) < 0.7  # of unrelated logits: 1.1
    watched = WatchedEngine(loaded)
    kv = watched.engine.new_kv()
    for end in (40, 60):
        watched.submit(kv, ledger[:end]).wait()
        # bitsandbytes computes in bfloat16 where the CPU has instructions for it, so that a row follows its batch.
        assert gap(watched.logits[tuple(ledger[:end])], read[end - 1]) < 0.05
    watched.close()


@pytest.mark.parametrize("name", ["bloom", "gpt"])
def test_weights_may_be_named_without_the_models_own_prefix(name: str, tmp_path: Path) -> None:
    """As in bigscience/bloom-560m and openai-community/openai-gpt."""
    directory = tiny_classic(name, tmp_path / name)
    before = full_read(load(directory, tmp_path, "none").model, range(3, 40))
    weights = load_file(directory / "model.safetensors")
    save_file(
        {key.removeprefix("transformer."): tensor for key, tensor in weights.items()},
        directory / "model.safetensors",
        metadata={"format": "pt"},
    )
    assert torch.equal(full_read(load(directory, tmp_path, "none").model, range(3, 40)), before)


def test_mpts_context_is_its_own(tmp_path: Path) -> None:
    loaded = load(tiny_classic("mpt", tmp_path / "mpt", max_seq_len=300), tmp_path, "none")
    assert context_limit_tokens(loaded, None) == 300
    with pytest.raises(ModelLoadError, match="holds at most 300 tokens; 301 were asked for"):
        context_limit_tokens(loaded, 301)


def test_a_setting_that_transformers_ignores_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    directory = tiny_classic("mpt", tmp_path / "mpt", attn_config={"qk_ln": True})
    with pytest.raises(ModelLoadError, match=r"attn_config\.qk_ln"):
        load(directory, tmp_path, "none")


def test_every_family_is_loaded_as_it_is(tmp_path: Path) -> None:
    for name in CONFIGS:
        loaded = load(tiny_classic(name, tmp_path / name), tmp_path, "none")
        assert (loaded.name, loaded.quantization) == (name, "float32")
