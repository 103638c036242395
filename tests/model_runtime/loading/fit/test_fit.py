"""A model that cannot fit is refused before its weights are read, and told what would fit."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from accelerate import init_empty_weights
from gguf import GGMLQuantizationType
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from model_runtime.interface.config import ModelConfig, Quantization
from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.checks.gguf_header import GgufHeader, TensorInfo, read_gguf_header
from model_runtime.loading.fit.needs import Machine, Needs, checkpoint_needs, gguf_needs
from model_runtime.loading.fit.refusal import refuse_too_large
from model_runtime.loading.loading import load_model
from model_runtime.weights.checkpoint_formats.stored_format import StoredFormat
from tests.conftest import TinyDir
from tests.model_runtime.tiny_gguf import write_gguf

GIB, MIB = 1024**3, 1024**2
CPU, GPU = Machine("cpu", has_own_kernels=True), Machine("cuda:0", has_own_kernels=True)


@pytest.fixture(scope="module")
def eight_billion() -> LlamaForCausalLM:
    """Llama 3 8B's shape."""
    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    with init_empty_weights():
        return LlamaForCausalLM(config)


def refused(
    needs: Needs, mode: Quantization, free: float, device: str = "cpu", caches: int | None = None, swap: int = 0
) -> str:
    try:
        refuse_too_large("org/name", needs, mode, device, caches, int(free), swap)
    except ModelLoadError as error:
        return str(error)
    return ""


def test_the_sentence_says_what_is_needed_what_is_free_and_what_would_fit(eight_billion: LlamaForCausalLM) -> None:
    needs = checkpoint_needs(eight_billion, None, GPU)
    assert needs.kv_token_bytes == 32 * 2 * 8 * 128 * 2
    assert refused(needs, "none", 12 * GIB, "cuda:0") == (
        "org/name cannot be loaded: it needs 15.2 GiB of memory (15.0 GiB for weights and 256.0 MiB for caches of "
        "2,048 tokens), and 12.0 GiB are free on cuda:0; with --quantization int8 it needs 8.7 GiB."
    )
    assert refused(needs, "none", 8 * GIB, "cuda:0").endswith("; with --quantization nf4 it needs 5.6 GiB.")
    assert refused(needs, "none", 16 * GIB, "cuda:0") == ""


def test_without_anything_that_fits_it_says_so(eight_billion: LlamaForCausalLM) -> None:
    needs = checkpoint_needs(eight_billion, None, CPU)
    assert refused(needs, "none", 3 * GIB).endswith(
        "3.0 GiB are free; even with --quantization nf4 it needs 5.6 GiB. Choose a smaller model, or end other "
        "programs."
    )
    assert refused(needs, "nf4", 3 * GIB).endswith(
        "3.0 GiB are free. Choose a smaller model or one with fewer bits, or end other programs."
    )


def test_the_caches_that_were_asked_for_count(eight_billion: LlamaForCausalLM) -> None:
    needs = checkpoint_needs(eight_billion, None, CPU)
    assert refused(needs, "nf4", 8 * GIB, caches=2 * GIB) == ""
    sentence = refused(needs, "nf4", 8 * GIB, caches=4 * GIB)
    assert "4.0 GiB for --device-kv-budget), and 8.0 GiB are free. Ask for a smaller --device-kv-budget" in sentence


def test_a_short_context_needs_no_room_for_more(eight_billion: LlamaForCausalLM) -> None:
    needs = checkpoint_needs(eight_billion, None, GPU)
    refuse_too_large("org/name", needs, "none", "cuda:0", None, int(15.1 * GIB), tokens=256)
    with pytest.raises(ModelLoadError, match=r"for caches of 2,048 tokens"):
        refuse_too_large("org/name", needs, "none", "cuda:0", None, int(15.1 * GIB))


def test_what_fits_with_swap_is_not_impossible(eight_billion: LlamaForCausalLM) -> None:
    needs = checkpoint_needs(eight_billion, None, CPU)
    assert refused(needs, "nf4", 5 * GIB, swap=GIB) == ""


def test_experts_need_four_bits_in_our_own_kernels_alone() -> None:
    config = Qwen3MoeConfig(hidden_size=64, num_hidden_layers=2, num_experts=32, moe_intermediate_size=64)
    with init_empty_weights():
        model = Qwen3MoeForCausalLM(config)
    experts = 2 * 32 * 3 * 64 * 64
    numbers = sum(p.numel() for p in model.parameters()) - experts
    assert checkpoint_needs(model, None, CPU).weights_bytes["nf4"] < experts + numbers * 4
    assert checkpoint_needs(model, None, GPU).weights_bytes["nf4"] > experts * 2


def test_a_stored_format_needs_its_own_bits(eight_billion: LlamaForCausalLM) -> None:
    stored = StoredFormat("fp8", {"quant_method": "fp8"})
    needs = checkpoint_needs(eight_billion, stored, GPU).weights_bytes
    assert set(needs) == {"none", "shipped"}
    gptq = StoredFormat("gptq", {"quant_method": "gptq", "bits": 4})
    tables_of_16_bits = 128_256 * 4096 * 2
    assert 4 * GIB < checkpoint_needs(eight_billion, gptq, GPU).weights_bytes["shipped"] < 3.6 * GIB + tables_of_16_bits
    assert 3 * GIB < checkpoint_needs(eight_billion, gptq, CPU).weights_bytes["shipped"] < 4 * GIB
    assert needs["shipped"] == pytest.approx(needs["none"] / 2, rel=0.01)
    mixture = StoredFormat("mxfp4", {"quant_method": "mxfp4"})
    with init_empty_weights():
        model = GptOssForCausalLM(GptOssConfig(num_hidden_layers=2))
    experts = checkpoint_needs(model, mixture, GPU).weights_bytes
    assert experts["shipped"] < 0.3 * experts["none"]


COMPRESSED = StoredFormat("compressed-tensors", {"quant_method": "compressed-tensors"})
FBGEMM = StoredFormat("fbgemm_fp8", {"quant_method": "fbgemm_fp8"})


@pytest.mark.parametrize("is_tied", [False, True], ids=["own head", "tied head"])
@pytest.mark.parametrize(("stored", "bits"), [(COMPRESSED, 4), (FBGEMM, 8)], ids=["compressed-tensors", "fbgemm"])
def test_linear_layers_keep_their_bits_on_a_gpu_and_tables_have_16(
    stored: StoredFormat, bits: int, is_tied: bool
) -> None:
    """A head of its own may be quantised: nothing is refused that would have fitted."""
    config = LlamaConfig(
        vocab_size=1024, hidden_size=256, intermediate_size=512, num_hidden_layers=2, tie_word_embeddings=is_tied
    )
    with init_empty_weights():
        model = LlamaForCausalLM(config)
    everything = sum(p.numel() for name, p in model.named_parameters() if name != "lm_head.weight")
    layers = 2 * (4 * 256 * 256 + 3 * 256 * 512)
    expected = (everything - layers) * 2 + layers * bits // 8 + (0 if is_tied else 1024 * 256 * bits // 8)
    assert checkpoint_needs(model, stored, GPU).weights_bytes["shipped"] == expected
    old_gpu = checkpoint_needs(model, stored, Machine("cuda:0", has_own_kernels=False)).weights_bytes
    assert old_gpu["shipped"] == old_gpu["none"]


def test_experts_are_de_quantised_on_a_gpu() -> None:
    config = Qwen3MoeConfig(hidden_size=64, num_hidden_layers=2, num_experts=32, moe_intermediate_size=64)
    with init_empty_weights():
        model = Qwen3MoeForCausalLM(config)
    assert checkpoint_needs(model, COMPRESSED, GPU).weights_bytes["shipped"] > 2 * 32 * 3 * 64 * 64 * 2


@pytest.mark.parametrize("mode", ["none", "nf4"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_the_estimate_is_what_a_checkpoint_takes(
    name: str, mode: Quantization, tiny_dir: TinyDir, tmp_path: Path
) -> None:
    config = ModelConfig(str(tiny_dir(name)), mode, cache_dir=tmp_path, device="cpu")
    loaded = load_model(config, lambda _: None)
    with init_empty_weights():
        model = type(loaded.model)(loaded.model.config)
    needs = checkpoint_needs(model, None, CPU)
    least = 0.75 if mode == "none" else 0.5  # the tiny ones have tables of 32 bits, others of 16
    assert least < needs.weights_bytes[mode] / loaded.weights_bytes <= 1.001


@pytest.mark.parametrize("mode", ["none", "shipped"])
def test_the_estimate_is_what_a_gguf_takes(mode: Quantization, tiny_dir: TinyDir, tmp_path: Path) -> None:
    path = write_gguf(tiny_dir("llama"), tmp_path / "tiny.gguf", GGMLQuantizationType.Q4_1)
    loaded = load_model(ModelConfig(str(path), mode, cache_dir=tmp_path, device="cpu"), lambda _: None)
    needs = gguf_needs(read_gguf_header(path), CPU)
    assert 0.9 < needs.weights_bytes[mode] / loaded.weights_bytes <= 1.001
    assert needs.kv_token_bytes == 3 * 2 * 2 * 16 * 2


def test_a_gguf_without_kernels_is_counted_de_quantised(tiny_dir: TinyDir, tmp_path: Path) -> None:
    header = read_gguf_header(write_gguf(tiny_dir("llama"), tmp_path / "tiny.gguf", GGMLQuantizationType.Q4_1))
    needs = gguf_needs(header, Machine("cpu", has_own_kernels=False)).weights_bytes
    assert needs["shipped"] == needs["none"]
    old_gpu = Machine("cuda:0", has_own_kernels=False)
    assert gguf_needs(header, old_gpu).weights_bytes["shipped"] == needs["none"] // 2


@pytest.mark.parametrize(
    ("name", "kind", "shape", "on_a_cpu", "on_a_gpu"),
    [
        ("blk.0.attn_q.weight", "Q4_K", (64, 512), 144 / 256, 144 / 256),
        ("output.weight", "Q6_K", (64, 512), 210 / 256, 210 / 256),
        ("blk.0.ffn_up.weight", "IQ2_XS", (64, 512), 4.5625 / 8, 4.5625 / 8),
        ("blk.0.ffn_up.weight", "F16", (64, 512), 2, 2),
        ("blk.0.attn_norm.weight", "F32", (512,), 4, 2),
        ("token_embd.weight", "Q6_K", (64, 512), 210 / 256, 210 / 256),
        ("position_embd.weight", "Q8_0", (64, 512), 34 / 32, 2),
        ("per_layer_token_embd.weight", "Q4_0", (64, 512), 18 / 32, 2),
        ("token_types.weight", "Q4_0", (64, 512), 18 / 32, 2),
        ("blk.0.ffn_up_exps.weight", "Q4_K", (4, 64, 512), 144 / 256, 2),
        ("blk.0.ffn_up.weight", "TQ1_0", (64, 512), 2, 2),
        ("blk.0.odd.weight", "F32", (64, 33), 4, 2),
    ],
)
def test_a_tensor_of_a_gguf_is_counted_as_it_lies_on_the_device(
    name: str, kind: str, shape: tuple[int, ...], on_a_cpu: float, on_a_gpu: float
) -> None:
    header = GgufHeader({}, {name: TensorInfo(name, shape, GGMLQuantizationType[kind], 0)}, 0)
    for machine, weight_bytes in ((CPU, on_a_cpu), (GPU, on_a_gpu)):
        assert gguf_needs(header, machine).weights_bytes["shipped"] == weight_bytes * math.prod(shape)


@pytest.mark.parametrize("capability", [(7, 5), (8, 0)])
def test_a_gguf_that_a_gpu_holds_at_its_bits_is_not_refused(
    capability: tuple[int, int], tiny_dir: TinyDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory is enough for its bits, and not for 16."""
    path = write_gguf(tiny_dir("llama"), tmp_path / "tiny.gguf", GGMLQuantizationType.Q4_0)
    needs = gguf_needs(read_gguf_header(path), GPU).weights_bytes
    caches = 1024
    little_memory(monkeypatch, needs["shipped"] + caches)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)

    class Read(Exception):
        """The weights are to be read."""

    def read(*_: object) -> None:
        raise Read

    monkeypatch.setattr("model_runtime.loading.loading.converted_gguf", read)
    config = ModelConfig(str(path), cache_dir=tmp_path, device="cuda:0")
    with pytest.raises(ModelLoadError) as refusal:
        load_model(config, print, caches)
    assert isinstance(refusal.value.__cause__, Read) == (capability >= (8, 0))
    assert ("it needs" in str(refusal.value)) == (capability < (8, 0))


def little_memory(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr("model_runtime.loading.loading.free_bytes", lambda _: free)
    monkeypatch.setattr("model_runtime.loading.loading.swap_bytes", lambda _: 0)


def test_a_directory_is_refused_before_its_weights_are_read(
    tiny_dir: TinyDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    little_memory(monkeypatch, 200 * 1024)
    monkeypatch.setattr("model_runtime.loading.loading.load_weights", None)
    config = ModelConfig(str(tiny_dir("llama")), "none", cache_dir=tmp_path, device="cpu")
    for caches in (None, MIB):
        with pytest.raises(ModelLoadError, match=r"^llama cannot be loaded: it needs \d\.\d MiB of memory"):
            load_model(config, print, caches)


def test_a_config_of_other_weights_is_the_truer_reason(
    tiny_dir: TinyDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = shutil.copytree(tiny_dir("llama"), tmp_path / "other")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"intermediate_size": 8_000_000}))
    little_memory(monkeypatch, 1000 * MIB)
    with pytest.raises(ModelLoadError, match=r"^other cannot be loaded: its config describes a model with"):
        load_model(ModelConfig(str(directory), cache_dir=tmp_path, device="cpu"), print)


def test_a_gguf_is_refused_before_it_is_converted(
    tiny_dir: TinyDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tiny_dir("llama"), tmp_path / "tiny.gguf", GGMLQuantizationType.Q4_1)
    said: list[str] = []
    little_memory(monkeypatch, 64 * 1024)
    with pytest.raises(ModelLoadError, match=r"^tiny cannot be loaded: it needs 1\.\d MiB of memory"):
        load_model(ModelConfig(str(path), "none", cache_dir=tmp_path / "cache", device="cpu"), said.append)
    assert said == []
    assert not (tmp_path / "cache" / "models").exists()
