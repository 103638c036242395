"""While a model is loaded, the process holds little more than the weights that it will have."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from gguf import GGMLQuantizationType
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from model_runtime.interface.config import ModelConfig, Quantization
from model_runtime.loading import model_cache
from model_runtime.loading.loaded import LoadedModel
from model_runtime.loading.loading import load_model, unload
from model_runtime.native import heap
from tests.conftest import TinyDir
from tests.model_runtime.tiny_blocks import random_blocks
from tests.model_runtime.tiny_gguf import keys_of, tensors_of, tokenizer_keys, write_file, write_gguf

pytestmark = pytest.mark.alone
MIB = 1024**2
OTHER_BYTES = 8 * MIB  # what comes with any model: modules, tokenizer, scratch, pages of libraries
SCRATCH_BYTES = 18 * MIB  # numbers as float32 and compared, per thread, and the tables that are read twice
Load = Callable[[Path, Quantization], LoadedModel]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    return lambda path, mode: load_model(
        ModelConfig(str(path), mode, cache_dir=tmp_path / "cache", device="cpu"), lambda _: None
    )


def sized(vocabulary: int, layers: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config)


@pytest.fixture
def model() -> LlamaForCausalLM:
    """20 million numbers."""
    return sized(8192, 4)


def save_random(model: LlamaForCausalLM, tokenizer_of: Path, directory: Path) -> None:
    model = model.to_empty(device="cpu").to(torch.bfloat16)
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, -0.1, 0.1)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(tokenizer_of).save_pretrained(directory)


def peak_over(weights: Callable[[], LoadedModel]) -> tuple[int, int]:
    """Bytes by which the process grew at the most, and those of the weights."""
    gc.collect()
    heap.give_back()
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the highest size is the present one
    loaded = weights()
    highest = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    weights_bytes = loaded.weights_bytes
    unload(loaded)
    return int(highest.split()[1]) * 1024 - before, weights_bytes


def test_a_gguf_is_loaded_within_its_weights(
    model: LlamaForCausalLM, tiny_dir: TinyDir, tmp_path: Path, load: Load
) -> None:
    unload(load(write_gguf(tiny_dir("llama"), tmp_path / "first.gguf", GGMLQuantizationType.Q4_1), "shipped"))
    keys = keys_of(model) | {"llama.vocab_size": model.config.vocab_size}
    keys |= tokenizer_keys(AutoTokenizer.from_pretrained(tiny_dir("llama")))
    model = model.to_empty(device="cpu")
    tensors = {name: np.ones_like(t) for name, t in tensors_of(model, "llama").items()}
    blocks = {
        n: (random_blocks("Q4_K", *t.shape, 1), GGMLQuantizationType.Q4_K) for n, t in tensors.items() if t.ndim > 1
    }
    path = write_file(tmp_path / "model.gguf", "llama", keys, tensors, raw=blocks)
    del tensors, blocks
    unload(load(path, "shipped"))  # converts it
    peak, weights = peak_over(lambda: load(path, "shipped"))
    assert weights < 1.1 * path.stat().st_size
    assert peak < 1.1 * weights + OTHER_BYTES


@pytest.mark.parametrize(("mode", "other"), [("nf4", OTHER_BYTES + SCRATCH_BYTES), ("none", OTHER_BYTES)])
def test_a_checkpoint_is_loaded_within_its_weights(
    mode: Quantization, other: int, model: LlamaForCausalLM, tiny_dir: TinyDir, tmp_path: Path, load: Load
) -> None:
    unload(load(tiny_dir("llama"), mode))
    save_random(model, tiny_dir("llama"), tmp_path / "model")
    peak, weights = peak_over(lambda: load(tmp_path / "model", mode))
    assert peak < 1.1 * weights + other


def test_what_was_kept_is_not_in_memory_twice(
    tiny_dir: TinyDir, tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_cache, "LEAST_KEPT_WEIGHTS", 1)
    save_random(sized(1024, 20), tiny_dir("llama"), tmp_path / "model")
    unload(load(tmp_path / "model", "nf4"))
    peak, weights = peak_over(lambda: load(tmp_path / "model", "nf4"))
    assert weights > 3 * OTHER_BYTES
    assert peak < 1.1 * weights + OTHER_BYTES
