"""Checkpoints that are quantised already: they run at their own bits, or are refused by a true sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedModel

from model_runtime.forward.native_forward import runs_natively
from model_runtime.interface.config import EngineConfig, ModelConfig, Quantization
from model_runtime.interface.errors import ModelLoadError
from model_runtime.interface.protocol import ModelInfo
from model_runtime.loading.checks.format_check import check_format
from model_runtime.loading.loaded import LoadedModel
from model_runtime.loading.loading import load_model
from model_runtime.weights.checkpoint_formats.fp8 import dequantised
from model_runtime.weights.checkpoint_formats.stored_format import StoredFormat
from model_runtime.weights.coded.coded_rows import Kind
from model_runtime.weights.native_matrix import NativeLinear
from tests.conftest import TinyDir
from tests.model_runtime.harness import WatchedEngine, full_read
from tests.model_runtime.tiny_families import tiny_family
from tests.model_runtime.tiny_formats import (
    Block,
    bitsandbytes_checkpoint,
    fp8_checkpoint,
    to_fp8,
    with_settings,
)
from tests.model_runtime.tiny_models import CONTEXT_TOKENS, VOCABULARY_TOKENS, save_tiny, tiny_tokenizer, token_ids

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
BFLOAT16 = {"bnb_4bit_compute_dtype": torch.bfloat16}
INT8 = {"load_in_8bit": True}
EXACT = 1e-4  # standard deviations of the logits
LEDGER = [(7 * place + 3) % VOCABULARY_TOKENS for place in range(60)]

Make = Callable[[Path, Path], Path]


def load(directory: Path, quantization: Quantization = "auto") -> LoadedModel:
    config = ModelConfig(str(directory), quantization, cache_dir=directory.parent / "cache", device="cpu")
    return load_model(config, print)


def gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.std())


def read_by_transformers(directory: Path, **settings: Any) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(directory)
    config.quantization_config = {**config.quantization_config, **settings}
    return AutoModelForCausalLM.from_pretrained(directory, config=config, dtype=torch.float32, device_map="cpu").eval()


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize("block", [(32, 32), (16, 64), None], ids=str)
def test_fp8_stays_at_8_bits_and_equals_the_de_quantised_model(
    name: str, block: Block | None, tiny_dir: TinyDir, tmp_path: Path
) -> None:
    directory = fp8_checkpoint(tiny_dir(name), tmp_path / "fp8", block)
    loaded = load(directory)
    assert loaded.quantization == "8-bit FP8 as shipped, multiplied in float32"
    own = [m.matrix for m in loaded.model.modules() if isinstance(m, NativeLinear) and m.matrix is not None]
    assert [matrix.kind for matrix in own].count(Kind.FP8) >= 3 * 7
    assert not [p for p in loaded.model.parameters() if p.dtype == torch.float8_e4m3fn]
    expected = full_read(read_by_transformers(directory, dequantize=True), LEDGER)
    assert gap(full_read(loaded.model, LEDGER), expected) < EXACT
    plain = load(directory, "none")
    assert plain.quantization == "float32 (from 8-bit FP8)"
    assert gap(full_read(plain.model, LEDGER), expected) < EXACT
    assert plain.fingerprint != loaded.fingerprint


def test_a_conversation_of_an_fp8_model_equals_one_read_to_the_bit(tiny_dir: TinyDir, tmp_path: Path) -> None:
    directory = fp8_checkpoint(tiny_dir("wide_llama"), tmp_path / "fp8", (64, 64))
    loaded = load(directory)
    assert runs_natively(loaded.model)
    reference = full_read(read_by_transformers(directory, dequantize=True), LEDGER)
    watched = WatchedEngine(loaded, EngineConfig(prefill_chunk_tokens=32, kv_dtype="float32"))
    try:
        info: ModelInfo = watched.engine.info
        assert info.quantization == "8-bit FP8 as shipped, multiplied in float32"
        kv = watched.engine.new_kv()
        for turn in (20, 41, 60):
            watched.submit(kv, LEDGER[:turn]).wait()
            assert gap(watched.logits[tuple(LEDGER[:turn])], reference[turn - 1]) < EXACT
        in_turns = watched.logits.pop(tuple(LEDGER))
        watched.submit(watched.engine.new_kv(), LEDGER).wait()
        assert torch.equal(watched.logits[tuple(LEDGER)], in_turns)
        watched.rest()
    finally:
        watched.close()


@pytest.mark.parametrize("block", [(16, 16), (48, 24)], ids=str)
def test_fp8_in_blocks_that_the_kernels_cannot_read_runs_in_torch(
    block: Block, tiny_dir: TinyDir, tmp_path: Path
) -> None:
    directory = fp8_checkpoint(tiny_dir("llama"), tmp_path / "fp8", block)
    loaded = load(directory)
    assert loaded.quantization == "8-bit FP8 as shipped, multiplied in float32"
    weight = load_file(tiny_dir("llama") / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    layer: Any = loaded.model.get_submodule("model.layers.0.mlp.up_proj")
    assert layer.weight.dtype == torch.float8_e4m3fn
    expected = dequantised(*to_fp8(weight, block), block, torch.float32)
    torch.testing.assert_close(layer(torch.eye(64)).T, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["fp8", "mxfp8"])
def test_scales_of_one_byte_are_exponents(method: str, tiny_dir: TinyDir, tmp_path: Path) -> None:
    more = {"quant_method": method}
    loaded = load(fp8_checkpoint(tiny_dir("llama"), tmp_path / "fp8", (1, 32), exponents=True, **more))
    weight = load_file(tiny_dir("llama") / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    codes, scale = to_fp8(weight, (1, 32), exponents=True)
    expected = codes.float() * scale.repeat_interleave(32, 1)
    layer = loaded.model.get_submodule("model.layers.0.mlp.up_proj")
    assert torch.equal(layer(torch.eye(64)).T, expected)


@pytest.mark.parametrize("shape", [(64, 128), (33, 70), (5, 7)], ids=str)
@pytest.mark.parametrize("block", [None, (32, 32), (48, 16)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_fp8_number_is_read_exactly(shape: tuple[int, int], block: Block | None, dtype: torch.dtype) -> None:
    """All 254 numbers of E4M3, zero and subnormals included, under blocks that do and do not divide the matrix."""
    numbers = torch.arange(256, dtype=torch.uint8)
    every = numbers[(numbers & 0x7F) != 0x7F]
    codes = every[torch.arange(shape[0] * shape[1]) % len(every)].view(shape).view(torch.float8_e4m3fn)
    _, scale = to_fp8(torch.randn(shape, generator=torch.Generator().manual_seed(1)), block)
    factors = scale
    if block:
        factors = scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[: shape[0], : shape[1]]
    expected = (codes.to(torch.float32) * factors).to(dtype)
    assert torch.equal(dequantised(codes, scale, block, dtype), expected)


def test_the_experts_of_an_fp8_model_stay_at_8_bits(tmp_path: Path) -> None:
    config = MixtralConfig(
        vocab_size=VOCABULARY_TOKENS,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        max_position_embeddings=CONTEXT_TOKENS,
        initializer_range=0.2,
        **token_ids(),
    )
    source = save_tiny(MixtralForCausalLM, config, tmp_path / "plain")
    weights = load_file(source / "model.safetensors")
    packed: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        if ".experts." in name or "_proj." in name:
            packed[name], packed[f"{name}_scale_inv"] = to_fp8(weight, (32, 32))
        else:
            packed[name] = weight
    directory = with_settings(
        source, tmp_path / "fp8", {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic"}
    )
    save_file(packed, directory / "model.safetensors", metadata={"format": "pt"})
    loaded = load(directory)
    assert loaded.model.get_submodule("model.layers.0.mlp.experts").gate_up_proj.dtype == torch.float8_e4m3fn
    expected = full_read(read_by_transformers(directory, dequantize=True), LEDGER)
    assert gap(full_read(loaded.model, LEDGER), expected) < EXACT


def test_what_the_config_leaves_alone_stays_as_it_is(tiny_dir: TinyDir, tmp_path: Path) -> None:
    """A skip list that an explicit quantization config would overwrite."""
    directory = fp8_checkpoint(tiny_dir("llama"), tmp_path / "fp8", (32, 32), modules_to_not_convert=["lm_head"])
    weights = load_file(directory / "model.safetensors")
    plain = load_file(tiny_dir("llama") / "model.safetensors")
    for name in ("model.layers.1.mlp.down_proj", "model.layers.2.self_attn.q_proj"):
        weights[f"{name}.weight"] = plain[f"{name}.weight"]
        del weights[f"{name}.weight_scale_inv"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match="lacks weights"):
        load(directory)
    skipped = ["lm_head", "model.layers.1.mlp.down_proj", "model.layers.2.self_attn.q_proj"]
    mixed = fp8_checkpoint(tiny_dir("llama"), tmp_path / "mixed", (32, 32), modules_to_not_convert=skipped)
    save_file(weights, mixed / "model.safetensors", metadata={"format": "pt"})
    for quantization in ("auto", "none"):
        model = load(mixed, quantization).model  # type: ignore[arg-type]
        layer = model.get_submodule("model.layers.1.mlp.down_proj")
        assert torch.equal(layer.weight, plain["model.layers.1.mlp.down_proj.weight"])
    assert "of the layers' weights in float32" in load(mixed).quantization


def test_fp8_with_missing_scales_or_damaged_numbers_is_refused(tiny_dir: TinyDir, tmp_path: Path) -> None:
    directory = fp8_checkpoint(tiny_dir("llama"), tmp_path / "fp8", (32, 32))
    weights = load_file(directory / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({k: v for k, v in weights.items() if k != f"{name}_scale_inv"}, directory / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"lacks weights: model\.layers\.0\.mlp\.up_proj\.weight_scale_inv"):
        load(directory)
    weights[name].view(torch.uint8)[3, 4] = 0xFF
    save_file(weights, directory / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"model\.layers\.0\.mlp\.up_proj are damaged: some are not numbers"):
        load(directory)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (NF4 | BFLOAT16, "4-bit NF4 (bitsandbytes)"),
        ({"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float16}, "4-bit FP4 (bitsandbytes)"),
    ],
    ids=["nf4", "fp4"],
)
def test_four_bits_of_bitsandbytes_equal_the_de_quantised_model(
    settings: dict[str, Any], name: str, tiny_dir: TinyDir, tmp_path: Path
) -> None:
    """Whatever dtype its maker computed in."""
    directory = bitsandbytes_checkpoint(tiny_dir("llama"), tmp_path / "bnb", **settings)
    loaded = load(directory)
    assert loaded.quantization == f"{name} as shipped"
    own = [m.matrix for m in loaded.model.modules() if isinstance(m, NativeLinear) and m.matrix is not None]
    assert [matrix.kind for matrix in own].count(Kind.LEVELS) == 3 * 7
    whole = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, device_map="cpu")
    expected = full_read(whole.dequantize(dtype=torch.float32).eval(), LEDGER)
    assert gap(full_read(loaded.model, LEDGER), expected) < EXACT
    plain = load(directory, "none")
    assert plain.quantization == f"float32 (from {name})"
    assert gap(full_read(plain.model, LEDGER), expected) < EXACT


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_conversation_in_four_bits_equals_one_read_to_the_bit(
    kind: str, nested: bool, tiny_dir: TinyDir, tmp_path: Path
) -> None:
    """In our own CPU kernels: the logits of the de-quantised model, and the same bits in turns and at once."""
    settings = {"load_in_4bit": True, "bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": nested}
    directory = bitsandbytes_checkpoint(tiny_dir("wide_llama"), tmp_path / "bnb", **settings)
    loaded = load(directory)
    assert runs_natively(loaded.model)
    expected = full_read(load(directory, "none").model, LEDGER)
    watched = WatchedEngine(loaded, EngineConfig(prefill_chunk_tokens=32, kv_dtype="float32"))
    try:
        assert watched.engine.info.quantization == f"4-bit {kind.upper()} (bitsandbytes) as shipped"
        kv = watched.engine.new_kv()
        for turn in (20, 41, 60):
            watched.submit(kv, LEDGER[:turn]).wait()
            assert gap(watched.logits[tuple(LEDGER[:turn])], expected[turn - 1]) < EXACT
        in_turns = watched.logits.pop(tuple(LEDGER))
        watched.submit(watched.engine.new_kv(), LEDGER).wait()
        assert torch.equal(watched.logits[tuple(LEDGER)], in_turns)
        watched.rest()
    finally:
        watched.close()


def test_eight_bits_of_bitsandbytes_equal_its_own_de_quantised_weights(tiny_dir: TinyDir, tmp_path: Path) -> None:
    """To the bit. Its own kernels also round activations to 8 bits, which is not done here."""
    directory = bitsandbytes_checkpoint(tiny_dir("llama"), tmp_path / "bnb", **INT8)
    loaded = load(directory)
    assert loaded.quantization == "8-bit (bitsandbytes) as shipped"
    own = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, device_map="cpu")
    whole = own.dequantize(dtype=torch.float32).eval()
    held = loaded.model.get_submodule("model.layers.1.mlp.down_proj")
    assert isinstance(held, NativeLinear)
    assert held.matrix is not None
    weight = whole.get_submodule("model.layers.1.mlp.down_proj").weight
    assert torch.equal(held.matrix.take(torch.arange(64)), weight)
    assert gap(full_read(loaded.model, LEDGER), full_read(whole, LEDGER)) < EXACT


def test_our_own_four_bits_are_exact_too(tiny_dir: TinyDir, tmp_path: Path) -> None:
    """Cached and packed equal one read, although bitsandbytes would round activations on some CPUs."""
    config = ModelConfig(str(tiny_dir("llama")), "nf4", cache_dir=tmp_path, device="cpu")
    loaded = load_model(config, print)
    expected = full_read(loaded.model, LEDGER)
    watched = WatchedEngine(loaded)
    try:
        kv = watched.engine.new_kv()
        for turn in (20, 41, 60):
            watched.submit(kv, LEDGER[:turn]).wait()
            assert gap(watched.logits[tuple(LEDGER[:turn])], expected[turn - 1]) < EXACT
        watched.rest()
    finally:
        watched.close()


def fp8(source: Path, target: Path) -> Path:
    return fp8_checkpoint(source, target, (32, 32))


def nf4(source: Path, target: Path) -> Path:
    return bitsandbytes_checkpoint(source, target, **NF4)


def int8(source: Path, target: Path) -> Path:
    return bitsandbytes_checkpoint(source, target, **INT8)


@pytest.mark.parametrize(
    ("make", "asked", "sentence"),
    [
        (fp8, "nf4", "stored as 8-bit FP8: --quantization nf4 would quantise it a second time"),
        (fp8, "int8", "stored as 8-bit FP8: --quantization int8 would quantise it a second time"),
        (nf4, "int8", r"stored as 4-bit NF4 \(bitsandbytes\): --quantization int8 would quantise it a second time"),
        (int8, "nf4", r"stored as 8-bit \(bitsandbytes\): --quantization nf4 would quantise it a second time"),
        (nf4, "nf4", None),
        (int8, "int8", None),
        (fp8, "shipped", None),
    ],
)
def test_a_flag_that_contradicts_the_checkpoint_is_refused(
    make: Make, asked: Quantization, sentence: str | None, tiny_dir: TinyDir, tmp_path: Path
) -> None:
    directory = make(tiny_dir("llama"), tmp_path / "made")
    if sentence is None:
        assert "as shipped" in load(directory, asked).quantization
        return
    with pytest.raises(ModelLoadError, match=sentence):
        load(directory, asked)


@pytest.mark.parametrize(
    ("settings", "asked", "sentence"),
    [
        ({"quant_method": "hqq"}, "none", "stored as hqq, which cannot be de-quantised here"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "auto", "stored as 'modelopt', a format that this version"),
        ({"quant_method": "hqq"}, "auto", "stored as hqq, which cannot be run on cpu"),
        ({"bits": 4}, "auto", "its quantization_config has no quant_method"),
        (7, "auto", "quantization_config is not a list of settings"),
    ],
    ids=lambda value: str(value.get("quant_method", "?")) if isinstance(value, dict) else None,
)
def test_what_is_missing_is_named_before_weights_are_read(
    settings: Any,
    asked: Quantization,
    sentence: str,
    tiny_dir: TinyDir,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("model_runtime.weights.checkpoint_formats.packages._is_installed", lambda module: False)
    directory = with_settings(tiny_dir("llama"), tmp_path / "made", settings)
    (directory / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=sentence):
        load(directory, asked)


@pytest.mark.parametrize(
    ("settings", "packages"),
    [
        (
            {"quant_method": "gptq", "bits": 3},
            "stored as 3-bit GPTQ; to run that, .* optimum and gptqmodel are missing",
        ),
        (
            {"quant_method": "awq", "bits": 4, "version": "gemv"},
            "stored as 4-bit AWQ; to run that, the Python package gptqmodel is missing",
        ),
        ({"quant_method": "mxfp4"}, "stored as 4-bit MXFP4; to run that, .* kernels and triton are missing"),
    ],
)
def test_a_gpu_needs_the_packages_for_what_our_own_layers_cannot_read(
    settings: dict[str, Any], packages: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_runtime.weights.checkpoint_formats.packages._is_installed", lambda module: False)
    stored = StoredFormat(settings["quant_method"], settings)
    instead = (
        "run it de-quantised with --quantization none" if stored.method == "mxfp4" else "choose another checkpoint"
    )
    with pytest.raises(ModelLoadError, match=f"{packages}.*, or {instead}"):
        check_format("made", stored, "cuda:0", dequantises=False)


@pytest.mark.parametrize("settings", [{"quant_method": "gptq", "bits": 4}, {"quant_method": "awq", "bits": 4}], ids=str)
def test_what_our_own_layers_read_needs_no_package_on_any_device(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_runtime.weights.checkpoint_formats.packages._is_installed", lambda module: False)
    stored = StoredFormat(settings["quant_method"], settings)
    for device, dequantises in (("cuda:0", False), ("cuda:0", True), ("cpu", False)):
        check_format("made", stored, device, dequantises=dequantises)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({}, r"its weights are quantised \(model\.layers\.0\.\S+ is F8_E4M3\), but its config has no"),
        ({"compression_config": {}}, "an older form of compressed-tensors"),
    ],
)
def test_quantised_weights_without_a_word_are_not_read_as_noise(
    more: dict[str, Any], sentence: str, tiny_dir: TinyDir, tmp_path: Path
) -> None:
    made = fp8_checkpoint(tiny_dir("llama"), tmp_path / "fp8", (32, 32))
    directory = with_settings(tiny_dir("llama"), tmp_path / "silent", None, **more)
    (directory / "model.safetensors").write_bytes((made / "model.safetensors").read_bytes())
    with pytest.raises(ModelLoadError, match=sentence):
        load(directory)
    (directory / "hf_quant_config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match=sentence if more else "hf_quant_config.json describes a format"):
        load(directory)


def test_experts_with_biases_are_refused_before_the_weights_are_read(tmp_path: Path) -> None:
    tiny_family("gpt_oss").save_pretrained(tmp_path / "plain")
    tiny_tokenizer().save_pretrained(tmp_path / "plain")
    settings = {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic"}
    directory = with_settings(tmp_path / "plain", tmp_path / "fp8", settings)
    with pytest.raises(ModelLoadError, match=r"experts have biases.*--quantization none"):
        load(directory)
