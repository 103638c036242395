"""What a GGUF file says of a model is what runs: its logits are those of a transformers model with the same config."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize, quantize
from transformers import PreTrainedModel

from model_runtime.forward.native_forward import NativeForward, runs_natively
from model_runtime.forward.transformers_forward import Feed
from model_runtime.interface.config import Quantization
from model_runtime.interface.errors import ModelLoadError
from model_runtime.kv.geometry import KVGeometry, LayerShape
from model_runtime.kv.slab import KVSlab
from model_runtime.loading.loaded import LoadedModel
from tests.model_runtime.loading.gguf.cases import CASES, IDS, SAID_ANYWAY

Load = Callable[[Path, Quantization], LoadedModel]
_EXACT = 2e-5  # standard deviations of the logits
NATIVE = (
    *("llama3", "llama3 otherwise", "llama heads", "wide yarn", "wide linear", "wide attention bias", "wide mlp bias"),
    *("qwen3", "qwen3 bias", "wide qwen2", "gemma3 six layers"),
)


def logits_of(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([IDS]), use_cache=False).logits[0]


def gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.std())


@pytest.mark.parametrize("name", CASES)
def test_a_file_runs_as_it_was_meant(name: str, tmp_path: Path, load: Load) -> None:
    case = CASES[name]
    model = case.model()
    loaded = load(case.write(tmp_path / "model.gguf", model), "none")
    assert gap(logits_of(loaded.model), logits_of(model)) < _EXACT


@pytest.mark.long  # two minutes together
@pytest.mark.parametrize(("name", "key"), [(name, key) for name, case in CASES.items() for key in case.keys])
def test_every_key_matters(name: str, key: str, tmp_path: Path, load: Load) -> None:
    """Without it the file is refused or answers otherwise, or the key says what is so anyway."""
    case = CASES[name]
    model = case.model()
    full = f"{case.architecture}.{key}"
    keys = {other: value for other, value in case.all_keys(model).items() if other != full}
    path = case.write(tmp_path / "model.gguf", model, keys=keys)
    try:
        changed = gap(logits_of(load(path, "none").model), logits_of(model))
    except ModelLoadError:
        return
    assert changed > 1e-3 or key in SAID_ANYWAY


def test_biases_of_one_layer_are_used(tmp_path: Path, load: Load) -> None:
    case = CASES["llama attention bias"]
    model = case.model()
    has = ("blk.0.attn_q.bias", "blk.0.attn_output.bias")
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and not name.startswith(("model.layers.0.self_attn.q", "model.layers.0.self_attn.o")):
            parameter.data.zero_()
    tensors = {name: rows for name, rows in case.all_tensors(model).items() if not name.endswith("bias") or name in has}
    loaded = load(case.write(tmp_path / "model.gguf", model, tensors=tensors), "none")
    assert gap(logits_of(loaded.model), logits_of(model)) < _EXACT


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1])
@pytest.mark.parametrize("name", [*NATIVE, "mistral", "qwen2 window"])
def test_four_bits_run_as_they_were_meant(name: str, kind: GGMLQuantizationType, tmp_path: Path, load: Load) -> None:
    """In our own kernels where these fit, else in the model's own layers, always on the file's 4-bit numbers."""
    case = CASES[name]
    model = case.model()
    loaded = load(case.write(tmp_path / "model.gguf", model, kind), "shipped")
    assert loaded.quantization == f"4-bit ({kind.name} as shipped)"
    expected = logits_of(with_rounded_matrices(model, kind))
    assert gap(logits_of(loaded.model), expected) < 1e-4
    assert runs_natively(loaded.model) == (name in NATIVE)
    if name in NATIVE:
        assert gap(NativeForward(loaded.model).run([Feed(slab(loaded.model), IDS, len(IDS))]), expected) < 1e-4


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K", "Q2_K", "Q3_K", "Q5_0", "IQ4_XS", "IQ2_XXS", "MXFP4"])
@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_other_types_are_read_to_the_last_bit(name: str, kind: str, tmp_path: Path, load: Load) -> None:
    """K-quants and their like have the file's values, not these rounded to float16."""
    case = replace(CASES[name], settings={**CASES[name].settings, "hidden_size": 256, "intermediate_size": 256})
    model, number = case.model(), GGMLQuantizationType[kind]
    tensor = "blk.1.ffn_down.weight" if name == "llama" else "blk.1.ffn_down_exps.weight"
    shape = case.all_tensors(model)[tensor].shape
    block, block_bytes = GGML_QUANT_SIZES[number]
    rows = np.random.default_rng(5).integers(0, 40, (*shape[:-1], shape[-1] // block * block_bytes), dtype=np.uint8)
    path = case.write(tmp_path / "model.gguf", model, raw={tensor: (rows, number)})
    loaded = load(path, "none")
    parameter = "model.layers.1.mlp." + ("down_proj.weight" if name == "llama" else "experts.down_proj")
    assert torch.equal(loaded.model.get_parameter(parameter), torch.from_numpy(dequantize(rows, number)))


def with_rounded_matrices(model: PreTrainedModel, kind: GGMLQuantizationType) -> PreTrainedModel:
    """The model with the numbers that its layers' matrices have in a file of that type."""
    rounded = deepcopy(model)
    for name, parameter in rounded.named_parameters():
        if ".layers." in name and parameter.ndim == 2:
            parameter.data = torch.from_numpy(dequantize(quantize(parameter.detach().numpy(), kind), kind))
    return rounded


def slab(model: PreTrainedModel) -> KVSlab:
    """A float32 KV for the model."""
    config = model.config
    shape = LayerShape(config.num_key_value_heads, config.head_dim, config.head_dim)
    return KVSlab(KVGeometry((shape,) * config.num_hidden_layers, torch.float32, torch.device("cpu")))
