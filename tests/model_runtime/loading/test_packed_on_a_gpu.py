"""Checkpoints of other programs on a device that is no plain CPU: linear layers keep their bits where that has proved
correct, as on a GPU, with the kernels' twin and with their source."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from model_runtime.forward.few_rows.coded.coded_linear import CodedLinear
from model_runtime.forward.few_rows.coded.device_layers import DeviceLayers
from model_runtime.forward.few_rows.coded.operations import CodedOperations, TorchCodedOperations
from model_runtime.forward.few_rows.coded.planes import CodedPlanes
from model_runtime.loading import loaded_weights
from model_runtime.loading.loaded_weights import LoadedWeights, load_weights
from model_runtime.weights.checkpoint_formats.stored_format import StoredFormat
from model_runtime.weights.quantization import Precision
from tests.conftest import TinyDir
from tests.model_runtime.forward.few_rows.kernels_on_a_cpu import OnACpu
from tests.model_runtime.small_configs import save_small, small_config
from tests.model_runtime.tiny_formats import Block, fp8_checkpoint
from tests.model_runtime.tiny_packed import Packed, Scheme, awq, compressed, eights, float_settings, gptq, written

DEVICE = "cpu:0"  # for the loader not the CPU
FBGEMM = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}
W4A16 = "4-bit compressed-tensors as shipped"
W8A16 = "8-bit compressed-tensors as shipped"
FP8 = "8-bit FP8 compressed-tensors as shipped, multiplied in float32"
SCHEMES: dict[str, tuple[Scheme, str]] = {
    "W4A16": (compressed(), W4A16),
    "W4A16 with zeros": (compressed(sym=False), W4A16),
    "W4A16 in another order": (compressed(sym=False, actorder=True), W4A16),
    "W8A16": (compressed(bits=8, group=-1, sym=False, dtype=torch.float16), W8A16),
    "W8A16 in bytes": (compressed(bits=8, layout="int-quantized", dtype=torch.float32), W8A16),
    "FP8, a scale a row": (eights(float_settings("channel"), (1, 0), torch.bfloat16), FP8),
    "FP8, one scale": (eights(float_settings("tensor"), None, torch.float32), FP8),
    "FP8, a scale a block": (
        eights(float_settings("block", block_structure=[64, 32]), (64, 32), torch.bfloat16),
        FP8,
    ),
    "GPTQ": (gptq(group=64), "4-bit GPTQ as shipped"),
    "GPTQ in another order": (gptq(sym=False, act_order="own"), "4-bit GPTQ as shipped"),
    "GPTQ, 8 bits": (gptq(bits=8, group=-1, dtype=torch.bfloat16), "8-bit GPTQ as shipped"),
    "AWQ": (awq(), "4-bit AWQ as shipped"),
    "fbgemm": (eights(FBGEMM, (1, 0), torch.float32), "8-bit FP8 (fbgemm) as shipped, multiplied in float32"),
}


class Wrong(TorchCodedOperations):
    def multiply(self, planes: CodedPlanes, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return super().multiply(planes, x, bias) * 1.1


@pytest.fixture(autouse=True)
def packages(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Those that are installed: none, until a test adds some."""
    there = set[str]()
    monkeypatch.setattr("model_runtime.weights.checkpoint_formats.packages._is_installed", there.__contains__)
    return there


@pytest.fixture(scope="session")
def folder_of_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    return tmp_path_factory.mktemp("kernels")


def loaded(directory: Path, operations: CodedOperations | None, patch: pytest.MonkeyPatch) -> LoadedWeights:
    """Without operations as where our kernels cannot run at all."""
    made = None if operations is None else DeviceLayers(torch.device("cpu"), torch.float32, operations)
    patch.setattr(loaded_weights, "device_layers", lambda device, dtype: made)
    precision = Precision("shipped", torch.float32, None)
    return load_weights(directory, False, precision, DEVICE, directory.parent / "cache", lambda _: None)


@torch.inference_mode()
def logits(one: LoadedWeights, tokens: int) -> torch.Tensor:
    ids = torch.arange(tokens).remainder(50)[None]
    found: torch.Tensor = one.model(ids, use_cache=False).logits
    return found


def check_weights(one: LoadedWeights, packed: Packed) -> None:
    """Every matrix that the checkpoint has in its format computes with the numbers that this means."""
    for name, weight in packed.weights.items():
        layer = one.model.get_submodule(name)
        assert isinstance(layer, CodedLinear), name
        for tokens in (3, 80):
            x = torch.randn(tokens, weight.shape[1])
            torch.testing.assert_close(layer(x), x @ weight.t(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SCHEMES)
def test_layers_keep_their_bits_and_compute_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_dir: TinyDir
) -> None:
    scheme, label = SCHEMES[name]
    packed = written(tiny_dir("llama"), tmp_path / "packed", scheme)
    plain, kept = (loaded(packed.directory, one, monkeypatch) for one in (None, TorchCodedOperations()))
    check_weights(kept, packed)
    assert kept.quantization == label
    assert plain.quantization == f"float32 (from {label.partition(' as shipped')[0]})"
    assert kept.kernel != plain.kernel  # saved KVs are not mixed
    assert not any("de-quantised" in note for note in kept.notes)
    names_a_package = name.startswith(("GPTQ", "AWQ"))
    assert any("gptqmodel's kernels run them" in note for note in kept.notes) == names_a_package
    assert any("weights run de-quantised in float32 on cpu:0" in note for note in plain.notes)
    torch.testing.assert_close(logits(kept, 5), logits(plain, 5), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["W4A16 with zeros", *(pytest.param(one, marks=pytest.mark.long) for one in ("W8A16", "fbgemm"))]
)
def test_the_kernels_source_runs_a_whole_checkpoint(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_dir: TinyDir, folder_of_kernels: Path
) -> None:
    packed = written(tiny_dir("llama"), tmp_path / "packed", SCHEMES[name][0])
    check_weights(loaded(packed.directory, OnACpu(folder_of_kernels), monkeypatch), packed)


@pytest.mark.parametrize("name", ["W4A16", "fbgemm"])
def test_a_wrong_kernel_is_said_and_not_used(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_dir: TinyDir
) -> None:
    scheme, label = SCHEMES[name]
    packed = written(tiny_dir("llama"), tmp_path / "packed", scheme)
    plain, wrong = (loaded(packed.directory, one, monkeypatch) for one in (None, Wrong()))
    assert not any(isinstance(module, CodedLinear) for module in wrong.model.modules())
    assert torch.equal(logits(wrong, 5), logits(plain, 5))
    assert (wrong.quantization, wrong.kernel) == (plain.quantization, plain.kernel)
    format_name = label.partition(" as shipped")[0]
    assert any(f"Weights of {format_name} run de-quantised" in note and "wrong" in note for note in wrong.notes)


def test_biases_are_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen2 has them in its attention."""
    source = save_small(small_config("qwen2", {}), tmp_path / "tiny")
    packed = written(source, tmp_path / "packed", SCHEMES["W4A16"][0])
    plain, kept = (loaded(packed.directory, one, monkeypatch) for one in (None, TorchCodedOperations()))
    layer = kept.model.get_submodule("model.layers.0.self_attn.q_proj")
    assert isinstance(layer, CodedLinear)
    assert layer.bias is not None
    assert layer.bias.any()
    torch.testing.assert_close(logits(kept, 5), logits(plain, 5), rtol=1e-4, atol=1e-4)


def test_experts_are_de_quantised_beside_layers_that_keep_their_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    source = save_small(small_config("qwen3_moe", sizes), tmp_path / "tiny")
    packed = written(source, tmp_path / "packed", SCHEMES["W4A16 with zeros"][0])
    plain, kept = (loaded(packed.directory, one, monkeypatch) for one in (None, TorchCodedOperations()))
    assert any(isinstance(module, CodedLinear) for module in kept.model.modules())
    assert "of the layers' weights in float32" in kept.quantization
    torch.testing.assert_close(logits(kept, 5), logits(plain, 5), rtol=1e-4, atol=1e-4)


FP8_BLOCKS: dict[str, tuple[Block | None, dict[str, Any]]] = {
    "blocks": ((32, 64), {}),
    "blocks that are cut off": ((48, 128), {}),
    "one scale": (None, {}),
    "MXFP8": ((1, 32), {"exponents": True, "quant_method": "mxfp8"}),
}


@pytest.mark.parametrize("name", FP8_BLOCKS)
def test_fp8_layers_run_in_our_own_kernels(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_dir: TinyDir
) -> None:
    block, more = FP8_BLOCKS[name]
    directory = fp8_checkpoint(tiny_dir("llama"), tmp_path / "fp8", block, **more)
    plain, kept = (loaded(directory, one, monkeypatch) for one in (None, TorchCodedOperations()))
    layers = [module for module in kept.model.modules() if isinstance(module, CodedLinear)]
    assert len(layers) == 7 * kept.model.config.num_hidden_layers
    assert not [p for p in kept.model.parameters() if p.dtype == torch.float8_e4m3fn]
    assert kept.quantization == plain.quantization  # torch de-quantises a layer as it runs
    assert "FP8 as shipped, multiplied in float32" in kept.quantization
    assert kept.kernel != plain.kernel
    assert kept.notes == plain.notes == ()
    torch.testing.assert_close(logits(kept, 5), logits(plain, 5), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("block", "operations", "said"), [((16, 16), TorchCodedOperations(), 0), (None, Wrong(), 1)])
def test_fp8_that_the_kernels_do_not_run_stays_in_torch(
    block: Block | None,
    operations: CodedOperations,
    said: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_dir: TinyDir,
) -> None:
    directory = fp8_checkpoint(tiny_dir("llama"), tmp_path / "fp8", block)
    plain, other = (loaded(directory, one, monkeypatch) for one in (None, operations))
    assert not any(isinstance(module, CodedLinear) for module in other.model.modules())
    assert torch.equal(logits(other, 5), logits(plain, 5))
    assert (other.quantization, other.kernel) == (plain.quantization, plain.kernel)
    assert sum("Weights of 8-bit FP8 run de-quantised" in note for note in other.notes) == said


@pytest.mark.parametrize(
    ("method", "installed", "is_own"),
    [
        ("gptq", (), True),
        ("gptq", ("gptqmodel",), True),
        ("gptq", ("gptqmodel", "optimum"), False),
        ("awq", ("optimum",), True),
        ("awq", ("gptqmodel",), False),
        ("compressed-tensors", ("compressed_tensors",), True),
        ("bitsandbytes", (), False),
    ],
)
def test_a_package_that_is_installed_runs_its_format_on_a_gpu(
    method: str, installed: tuple[str, ...], is_own: bool, packages: set[str]
) -> None:
    packages.update(installed)
    stored = StoredFormat(method, {"quant_method": method, "bits": 4, "load_in_8bit": method == "bitsandbytes"})
    assert stored.is_own_on("cuda:0", dequantises=False) == is_own
    assert stored.is_own_on("cpu", dequantises=False)
    assert stored.is_own_on("cuda:0", dequantises=True)


def test_the_start_says_that_a_package_runs_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_dir: TinyDir, packages: set[str]
) -> None:
    """The package is not here: what it would load is a plain model."""
    packages.update(("gptqmodel", "optimum"))
    packed = written(tiny_dir("llama"), tmp_path / "packed", gptq())
    plain = LlamaForCausalLM.from_pretrained(tiny_dir("llama"))
    monkeypatch.setattr(loaded_weights, "load_checkpoint", lambda *_: (plain, ()))
    found = loaded(packed.directory, TorchCodedOperations(), monkeypatch)
    assert found.notes == ("The 4-bit GPTQ weights run in gptqmodel's kernels, not in our own.",)
    assert found.quantization == "4-bit GPTQ as shipped"
