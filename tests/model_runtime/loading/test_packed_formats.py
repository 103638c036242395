"""Checkpoints of GPTQ, AWQ, compressed-tensors, fbgemm and LLM.int8 run at their own bits without their packages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GptOssConfig, GptOssForCausalLM

from model_runtime.forward.native_forward import runs_natively
from model_runtime.interface.config import EngineConfig, ModelConfig, Quantization
from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.loaded import LoadedModel
from model_runtime.loading.loading import load_model, unload
from model_runtime.native.native_library import NativeUnavailable
from model_runtime.reference.transformers_side import load_reference
from model_runtime.weights.native_matrix import NativeLinear
from model_runtime.weights.own_layers.mxfp4_experts import OwnExperts
from tests.conftest import TinyDir
from tests.model_runtime.harness import WatchedEngine, full_read
from tests.model_runtime.small_configs import save_small, small_config
from tests.model_runtime.tiny_formats import with_settings
from tests.model_runtime.tiny_models import CONTEXT_TOKENS, VOCABULARY_TOKENS, save_tiny, token_ids
from tests.model_runtime.tiny_packed import (
    Packed,
    Scheme,
    awq,
    compressed,
    compressed_settings,
    eights,
    float_settings,
    gptq,
    llm_int8,
    mxfp4,
    written,
)

EXACT = 1e-4  # standard deviations of the logits
LEDGER = [(7 * place + 3) % VOCABULARY_TOKENS for place in range(60)]
FBGEMM = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}
SCHEMES: dict[str, tuple[Scheme, str]] = {
    "gptq": (gptq(sym=False, group=64), "4-bit GPTQ"),
    "gptq in order": (gptq(sym=False, act_order="shared"), "4-bit GPTQ"),
    "gptq 8 bits": (gptq(bits=8, group=-1), "8-bit GPTQ"),
    "awq": (awq(), "4-bit AWQ"),
    "W4A16": (compressed(sym=False), "4-bit compressed-tensors"),
    "FP8": (eights(float_settings("channel"), (1, 0), torch.bfloat16), "8-bit FP8 compressed-tensors"),
    "fbgemm": (eights(FBGEMM, (1, 0), torch.float32), "8-bit FP8 (fbgemm)"),
    "int8": (llm_int8(), "8-bit (bitsandbytes)"),
}
ROUNDED = ("FP8", "fbgemm", "int8")  # whose own kernels round activations


def load(directory: Path, quantization: Quantization = "auto") -> LoadedModel:
    config = ModelConfig(str(directory), quantization, cache_dir=directory.parent / "cache", device="cpu")
    return load_model(config, print)


def plain_logits(packed: Packed) -> torch.Tensor:
    """Of the de-quantised float32 model, read by transformers alone, as `keepwarm doctor` does."""
    return full_read(load_reference(packed.directory, torch.float32, "cpu", None, None).model, LEDGER)


def gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.std())


@pytest.mark.parametrize("name", SCHEMES)
def test_a_checkpoint_runs_at_its_own_bits_and_cached_equals_read(
    name: str, tiny_dir: TinyDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its logits are those of the de-quantised float32 model, and the same bits in turns and at once."""
    monkeypatch.setattr("model_runtime.weights.checkpoint_formats.packages._is_installed", lambda module: False)
    scheme, label = SCHEMES[name]
    packed = written(tiny_dir("wide_llama"), tmp_path / "packed", scheme)
    loaded, expected = load(packed.directory), plain_logits(packed)
    multiplied = ", multiplied in float32" if "FP8" in label else ""
    assert loaded.quantization == f"{label} as shipped{multiplied}"
    assert runs_natively(loaded.model)
    assert any("that is not done here" in note for note in loaded.notes) == (name in ROUNDED)
    for layer, weight in packed.weights.items():
        held = loaded.model.get_submodule(layer)
        assert isinstance(held, NativeLinear)
        assert held.matrix is not None
        assert torch.equal(held.matrix.take(torch.arange(held.out_features)), weight)
    cached_turns_equal(loaded, expected)


def cached_turns_equal(loaded: LoadedModel, expected: torch.Tensor) -> None:
    """In three turns and at once: the logits `expected`, and the same bits where our own kernels run the whole step."""
    watched = WatchedEngine(loaded, EngineConfig(prefill_chunk_tokens=32, kv_dtype="float32"))
    try:
        assert watched.engine.info.quantization == loaded.quantization
        kv = watched.engine.new_kv()
        for turn in (20, 41, 60):
            watched.submit(kv, LEDGER[:turn]).wait()
            assert gap(watched.logits[tuple(LEDGER[:turn])], expected[turn - 1]) < EXACT
        in_turns = watched.logits.pop(tuple(LEDGER))
        watched.submit(watched.engine.new_kv(), LEDGER).wait()
        at_once = watched.logits[tuple(LEDGER)]
        assert torch.equal(at_once, in_turns) if runs_natively(loaded.model) else gap(at_once, in_turns) < EXACT
        watched.rest()
    finally:
        watched.close()


@pytest.mark.parametrize("name", ["gptq in order", "W4A16", "int8"])
def test_they_can_be_de_quantised_too(name: str, tiny_dir: TinyDir, tmp_path: Path) -> None:
    scheme, label = SCHEMES[name]
    packed = written(tiny_dir("wide_llama"), tmp_path / "packed", scheme)
    loaded = load(packed.directory, "none")
    assert loaded.quantization == f"float32 (from {label})"
    for layer, weight in packed.weights.items():
        assert torch.equal(loaded.model.get_submodule(layer).weight, weight)
    assert gap(full_read(loaded.model, LEDGER), plain_logits(packed)) < EXACT


def test_without_a_compiler_they_run_de_quantised_and_a_note_says_so(
    tiny_dir: TinyDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*args: object, **kwargs: object) -> None:
        raise NativeUnavailable("there is no C compiler")

    monkeypatch.setattr("model_runtime.weights.kernel_choice.native_library", none)
    packed = written(tiny_dir("wide_llama"), tmp_path / "packed", SCHEMES["awq"][0])
    loaded = load(packed.directory)
    assert loaded.quantization == "float32 (from 4-bit AWQ)"
    assert any("AWQ weights run de-quantised" in note and "no C compiler" in note for note in loaded.notes)
    assert gap(full_read(loaded.model, LEDGER), plain_logits(packed)) < EXACT


@pytest.mark.parametrize("model", ["llama", "qwen3", "gemma3"])
def test_matrices_with_orders_of_their_own_run_layer_by_layer(model: str, tiny_dir: TinyDir, tmp_path: Path) -> None:
    """Each matrix puts its inputs in order, where no two of them agree on it."""
    packed = written(tiny_dir(model), tmp_path / "packed", gptq(sym=False, act_order="own"))
    loaded = load(packed.directory)
    assert not runs_natively(loaded.model)
    assert loaded.quantization == "4-bit GPTQ as shipped"
    assert gap(full_read(loaded.model, LEDGER), plain_logits(packed)) < EXACT


def test_layers_that_the_files_leave_alone_stay_as_they_are(tiny_dir: TinyDir, tmp_path: Path) -> None:
    """The tensors say which these are, whatever lists of patterns say."""
    packed = written(tiny_dir("wide_llama"), tmp_path / "packed", gptq())
    name = "model.layers.1.mlp.down_proj"
    tensors = load_file(packed.directory / "model.safetensors")
    kept = {key: value for key, value in tensors.items() if not key.startswith(f"{name}.")}
    save_file(kept | {f"{name}.weight": packed.weights[name]}, packed.directory / "model.safetensors", {"format": "pt"})
    loaded = load(packed.directory)
    assert torch.equal(loaded.model.get_submodule(name).weight, packed.weights[name])
    assert "of the layers' weights in float32" in loaded.quantization
    assert gap(full_read(loaded.model, LEDGER), plain_logits(packed)) < EXACT


@pytest.mark.parametrize("size", [0.0, 0.5], ids=["zeros", "numbers"])
def test_biases_that_the_family_does_not_have_are_added(size: float, tiny_dir: TinyDir, tmp_path: Path) -> None:
    """AutoGPTQ writes one for every layer, zeros where there was none."""
    packed = written(tiny_dir("wide_llama"), tmp_path / "packed", gptq())
    path, draw = packed.directory / "model.safetensors", torch.Generator().manual_seed(6)
    biases = {
        f"{name}.bias": size * torch.randn(w.shape[0], generator=draw).half() for name, w in packed.weights.items()
    }
    save_file(load_file(path) | biases, path, {"format": "pt"})
    name = "model.layers.1.self_attn.o_proj"
    for quantization in ("auto", "none"):
        loaded = load(packed.directory, quantization)  # type: ignore[arg-type]
        expected = packed.weights[name].t() + biases[f"{name}.bias"].float()
        torch.testing.assert_close(loaded.model.get_submodule(name)(torch.eye(128)), expected, rtol=0, atol=1e-6)
        assert gap(full_read(loaded.model, LEDGER), plain_logits(packed)) < EXACT


@pytest.mark.parametrize("missing", ["qweight", "qzeros", "scales"])
def test_a_checkpoint_without_one_of_its_tensors_is_refused(missing: str, tiny_dir: TinyDir, tmp_path: Path) -> None:
    packed = written(tiny_dir("wide_llama"), tmp_path / "packed", gptq())
    path, name = packed.directory / "model.safetensors", f"model.layers.0.mlp.up_proj.{missing}"
    save_file({key: value for key, value in load_file(path).items() if key != name}, path, {"format": "pt"})
    with pytest.raises(ModelLoadError, match=rf"lacks weights: {name}"):
        load(packed.directory)


def test_tensors_of_other_sizes_than_the_config_says_are_refused(tiny_dir: TinyDir, tmp_path: Path) -> None:
    packed = written(tiny_dir("wide_llama"), tmp_path / "packed", gptq())
    path, name = packed.directory / "model.safetensors", "model.layers.0.mlp.up_proj"
    tensors = load_file(path)
    save_file(tensors | {f"{name}.qweight": tensors[f"{name}.qweight"][:, :96].contiguous()}, path, {"format": "pt"})
    with pytest.raises(ModelLoadError, match=rf"{name} has a matrix of 192 x 128 has packed weights|{name}"):
        load(packed.directory)


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}
INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
FP4 = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16}
TO_INT8 = {"num_bits": 8, "type": "int", "dynamic": True, "strategy": "token"}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (GPTQ | {"bits": 3}, "stored as 3-bit GPTQ with 3 bits"),
        (GPTQ | {"bits": 2}, "stored as 2-bit GPTQ with 2 bits"),
        (GPTQ | {"dynamic": {"+:.*mlp.*": {"bits": 3}}}, "GPTQ with 3 bits"),
        (GPTQ | {"checkpoint_format": "marlin"}, "GPTQ with the layout marlin"),
        (GPTQ | {"is_marlin_format": True}, "GPTQ with the layout marlin"),
        (GPTQ | {"group_size": 16}, "GPTQ with groups of 16 columns"),
        (GPTQ | {"adapter": {"name": "lora"}}, "GPTQ with an adapter"),
        (GPTQ | {"pack_dtype": "int16"}, "GPTQ with words of int16"),
        (AWQ | {"version": "gemv"}, "AWQ with the layout gemv"),
        (AWQ | {"version": "gemv_fast"}, "AWQ with the layout gemv_fast"),
        (AWQ | {"bits": 8}, "AWQ with 8 bits"),
        (AWQ | {"zero_point": False}, "AWQ with no zero points"),
        (compressed_settings(INT4, "marlin-24"), "compressed-tensors with the layout marlin-24"),
        (compressed_settings(FP4, "nvfp4-pack-quantized"), "compressed-tensors with the layout nvfp4-pack-quantized"),
        (
            compressed_settings(INT4 | {"num_bits": 3}, "pack-quantized"),
            "with 3-bit weights in the layout pack-quantized",
        ),
        (
            compressed_settings(INT4, "pack-quantized") | {"transform_config": {"R1": {}}},
            "weights that are transformed",
        ),
        (
            compressed_settings(INT4, "pack-quantized") | {"sparsity_config": {"format": "sparse-24-bitmask"}},
            "the layout sparse-24-bitmask",
        ),
        (compressed_settings(INT4, "pack-quantized") | {"quantization_status": "frozen"}, "not compressed yet"),
        (
            compressed_settings(INT8, "int-quantized", TO_INT8),
            "activations that are rounded to int8.*--quantization none",
        ),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "compressed-tensors with no config_groups"),
    ],
)
def test_what_cannot_be_held_is_refused_by_name_before_weights_are_read(
    settings: dict[str, Any], sentence: str, tiny_dir: TinyDir, tmp_path: Path
) -> None:
    directory = with_settings(tiny_dir("llama"), tmp_path / "made", settings)
    (directory / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=sentence):
        load(directory)


MIXTURES = {
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 64},
    "mixtral": {"num_local_experts": 4, "intermediate_size": 64},
    "deepseek_v3": {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 64},
}


def mixture(family: str, directory: Path) -> Path:
    """A tiny mixture of experts: four in each layer, of which two are chosen."""
    return save_small(small_config(family, MIXTURES[family] | {"num_experts_per_tok": 2}), directory)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("qwen3_moe", "gptq in order"),
        ("mixtral", "gptq"),
        ("deepseek_v3", "awq"),
        ("mixtral", "W4A16"),
        ("qwen3_moe", "FP8"),
    ],
)
def test_experts_run_at_the_bits_of_the_checkpoint(family: str, name: str, tmp_path: Path) -> None:
    """The checkpoint has a quantised matrix for each expert, transformers' model one for all of them."""
    scheme, label = SCHEMES[name]
    packed = written(mixture(family, tmp_path / "tiny"), tmp_path / "packed", scheme)
    loaded, expected = load(packed.directory), plain_logits(packed)
    assert loaded.quantization.startswith(f"{label} as shipped")
    assert family == "deepseek_v3" or "layers' weights" not in loaded.quantization  # kv_a_proj_with_mqa
    assert not [name for name, _ in loaded.model.named_parameters() if "experts" in name]
    cached_turns_equal(loaded, expected)
    unload(loaded)
    assert gap(full_read(load(packed.directory, "none").model, LEDGER), expected) < EXACT


def test_experts_of_which_some_are_plain_are_refused(tmp_path: Path) -> None:
    packed = written(mixture("mixtral", tmp_path / "tiny"), tmp_path / "packed", gptq())
    tensors = load_file(packed.directory / "model.safetensors")
    base = "model.layers.0.block_sparse_moe.experts.1.w2"
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(base)}
    tensors[f"{base}.weight"] = packed.weights[base]
    save_file(tensors, packed.directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelLoadError, match=r"layers\.0\.mlp\.experts, the checkpoint has not all matrices of 4 experts in one format"
    ):
        load(packed.directory)


def test_experts_that_are_gated_otherwise_are_refused_from_the_config(gpt_oss: Packed, tmp_path: Path) -> None:
    directory = with_settings(gpt_oss.directory, tmp_path / "gptq", gptq().settings)
    (directory / "model.safetensors").unlink()
    with pytest.raises(
        ModelLoadError, match=r"stored as 4-bit GPTQ\. Its experts \(model\.layers\.0\.mlp\.experts\) cannot"
    ):
        load(directory)


def test_int8_for_rounded_activations_runs_de_quantised_when_asked(tiny_dir: TinyDir, tmp_path: Path) -> None:
    scheme = compressed(bits=8, group=-1, layout="int-quantized")
    scheme.settings["config_groups"]["group_0"]["input_activations"] = TO_INT8
    packed = written(tiny_dir("wide_llama"), tmp_path / "packed", scheme)
    loaded = load(packed.directory, "none")
    assert any("that is not done here" in note for note in loaded.notes)
    assert gap(full_read(loaded.model, LEDGER), plain_logits(packed)) < EXACT


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    """Four experts of which two are chosen."""
    config = GptOssConfig(
        vocab_size=VOCABULARY_TOKENS,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=24,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=CONTEXT_TOKENS,
        initializer_range=0.2,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        **token_ids(),
    )
    directory = tmp_path_factory.mktemp("gpt_oss")
    return mxfp4(save_tiny(GptOssForCausalLM, config, directory / "source"), directory / "packed")


def test_experts_in_mxfp4_stay_at_their_bits(gpt_oss: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model_runtime.weights.checkpoint_formats.packages._is_installed", lambda module: False)
    loaded, expected = load(gpt_oss.directory), plain_logits(gpt_oss)
    assert loaded.quantization.startswith("4-bit MXFP4 as shipped; ")
    assert loaded.quantization.endswith("of the layers' weights in float32")
    bytes_of_file = 0
    for name, weight in gpt_oss.weights.items():
        base, _, projection = name.rpartition(".")
        experts = loaded.model.get_submodule(base)
        assert isinstance(experts, OwnExperts)
        held = [one.take(torch.arange(one.rows)).t() for one in experts.matrices[projection]]
        assert torch.equal(torch.stack(held), weight)
        bytes_of_file += weight.numel() // 32 * 17
    assert sum(getattr(module, "hidden_bytes", 0) for module in loaded.model.modules()) >= bytes_of_file
    cached_turns_equal(loaded, expected)
    unload(loaded)
    assert not experts.matrices


def test_experts_in_mxfp4_are_de_quantised_without_a_compiler(gpt_oss: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*args: object, **kwargs: object) -> None:
        raise NativeUnavailable("there is no C compiler")

    monkeypatch.setattr("model_runtime.weights.kernel_choice.native_library", none)
    loaded = load(gpt_oss.directory)
    assert loaded.quantization == "float32 (from 4-bit MXFP4)"
    for name, weight in gpt_oss.weights.items():
        assert torch.equal(loaded.model.get_parameter(name), weight)
    assert gap(full_read(loaded.model, LEDGER), plain_logits(gpt_oss)) < EXACT


def test_mxfp4_of_other_models_is_refused(tiny_dir: TinyDir, tmp_path: Path) -> None:
    directory = with_settings(tiny_dir("llama"), tmp_path / "made", {"quant_method": "mxfp4"})
    with pytest.raises(ModelLoadError, match="in MXFP4: only the experts of gpt-oss"):
        load(directory)
