"""The embedded model as it was shipped, held against its own numbers in float32; NF4 through bitsandbytes on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear8bitLt
from gguf import GGUFReader, dequantize
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel

from model_runtime.forward.native_forward import runs_natively
from model_runtime.forward.runtime import waits_for_the_device
from model_runtime.interface.config import ModelConfig, Quantization
from model_runtime.loading.loaded import LoadedModel
from model_runtime.loading.loading import load_model, unload
from model_runtime.weights.build import build_packed
from model_runtime.weights.checkpoint_formats.stored_format import StoredFormat
from model_runtime.weights.coded.coded_rows import Scales
from model_runtime.weights.linear_int4 import KernelPlan
from model_runtime.weights.native_matrix import Kind, NativeLinear
from model_runtime.weights.quantization import choose_precision
from tests.conftest import TinyDir
from tests.model_runtime.tiny_models import CONTEXT_TOKENS, PROSE_PATH, VOCABULARY_TOKENS, save_tiny, token_ids

FP8 = StoredFormat("fp8", {"quant_method": "fp8"})
COMPRESSED = StoredFormat("compressed-tensors", {"quant_method": "compressed-tensors"})
NF4 = StoredFormat("bitsandbytes", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"})
BNB = StoredFormat("bitsandbytes", {"load_in_8bit": True})
WINDOW_TOKENS = 437
NLL_LIMIT = 0.01


@torch.inference_mode()
def mean_nll(model: PreTrainedModel, token_ids: list[int]) -> float:
    """Teacher-forced mean negative log-likelihood over windows that are read alone."""
    losses = []
    for start in range(0, len(token_ids) - 1, WINDOW_TOKENS):
        window = torch.tensor([token_ids[start : start + WINDOW_TOKENS]])
        logits = model(window, use_cache=False).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits.float(), window[0, 1:], reduction="none"))
    return float(torch.cat(losses).mean())


@pytest.fixture(scope="module")
def prose(loaded_embedded: LoadedModel) -> list[int]:
    """A window of English."""
    ids: list[int] = loaded_embedded.tokenizer(PROSE_PATH.read_text(encoding="utf-8"))["input_ids"]
    return ids[:WINDOW_TOKENS]


@pytest.fixture(scope="module")
def float32_nll(loaded_embedded_float32: LoadedModel, prose: list[int]) -> float:
    loaded_embedded_float32.model.set_attn_implementation("sdpa")
    return mean_nll(loaded_embedded_float32.model, prose)


@pytest.mark.embedded
@pytest.mark.timeout(900)  # bfloat16 products are slow where the processor has none of its own
@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(KernelPlan(True, 1 << 30, torch.float32), id="packed kernel"),
        pytest.param(KernelPlan(True, 0, torch.bfloat16), id="de-quantised to bfloat16"),
    ],
)
def test_every_kernel_for_the_shipped_bits_keeps_the_quality(
    plan: KernelPlan, float32_nll: float, prose: list[int], embedded_directory: Path
) -> None:
    assert abs(mean_nll(build_packed(embedded_directory, plan), prose) - float32_nll) < NLL_LIMIT


@pytest.mark.embedded
def test_our_own_kernels_lose_nothing(loaded_embedded: LoadedModel, float32_nll: float, prose: list[int]) -> None:
    assert runs_natively(loaded_embedded.model)
    loaded_embedded.model.set_attn_implementation("sdpa")  # an engine may have left its own
    assert abs(mean_nll(loaded_embedded.model, prose) - float32_nll) < 1e-5


@pytest.fixture(scope="module")
def embedded_directory(embedded_cache: Path) -> Path:
    """The converted embedded model."""
    return next((embedded_cache / "models").glob("SmolLM2-135M-Instruct-*-v1"))


@pytest.mark.embedded
def test_every_layer_runs_at_the_shipped_four_bits(loaded_embedded: LoadedModel) -> None:
    """30 layers of 7 matrices with the file's own values, read by the gguf library."""
    layers = {name: m for name, m in loaded_embedded.model.named_modules() if isinstance(m, NativeLinear)}
    kinds = [m.matrix.kind for m in layers.values() if m.matrix is not None]
    assert (kinds.count(Kind.Q4), kinds.count(Kind.Q8)) == (210, 1)
    assert loaded_embedded.quantization == "4-bit (Q4_1 as shipped)"
    path = next((ModelConfig().cache_dir / "embedded").glob("*.gguf"))
    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    for name, gguf_name in (
        ("mlp.down_proj", "ffn_down"),
        ("self_attn.v_proj", "attn_v"),
        ("mlp.gate_proj", "ffn_gate"),
    ):
        for layer in (0, 29):
            tensor = tensors[f"blk.{layer}.{gguf_name}.weight"]
            expected = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type))
            found = layers[f"model.layers.{layer}.{name}"](torch.eye(expected.shape[1])).t()
            assert torch.equal(found, expected)


@pytest.mark.embedded
def test_the_shipped_bits_take_a_third_of_the_memory(
    loaded_embedded: LoadedModel, loaded_embedded_float32: LoadedModel
) -> None:
    assert loaded_embedded.weights_bytes < loaded_embedded_float32.weights_bytes / 3


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gptbigcode"])
def test_nf4_runs_a_checkpoint_on_the_cpu(name: str, tiny_dir: TinyDir, tmp_path: Path) -> None:
    config = ModelConfig(model=str(tiny_dir(name)), quantization="nf4", cache_dir=tmp_path, device="cpu")
    loaded = load_model(config, print)
    assert not any(type(module).__name__ == "Linear4bit" for module in loaded.model.modules())
    own = [m.matrix for m in loaded.model.modules() if isinstance(m, NativeLinear) and m.matrix is not None]
    assert {matrix.struct.scales for matrix in own if matrix.kind is Kind.LEVELS} == {int(Scales.NESTED)}
    assert loaded.quantization == "4-bit NF4 (bitsandbytes)"
    ids = torch.tensor([loaded.tokenizer("The lamp has changed from oil to gas.")["input_ids"]])
    with torch.inference_mode():
        together = loaded.model(ids, use_cache=False).logits
        prefix = loaded.model(ids[:, :-1], use_cache=False).logits
    assert together.dtype == loaded.kv_dtype == torch.float32
    assert (together[:, :-1] - prefix).abs().max() < 1e-4 * together.std()
    unload(loaded)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_our_own_kernels_compute_what_bitsandbytes_computes(
    name: str, tiny_dir: TinyDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def logits() -> tuple[torch.Tensor, LoadedModel]:
        config = ModelConfig(model=str(tiny_dir(name)), quantization="nf4", cache_dir=tmp_path, device="cpu")
        loaded = load_model(config, print)
        ids = torch.tensor([loaded.tokenizer("The lamp has changed from oil to gas.")["input_ids"]])
        with torch.inference_mode():
            return loaded.model(ids, use_cache=False).logits, loaded

    own, loaded = logits()
    monkeypatch.setattr("model_runtime.loading.loaded_weights.own_kernels", lambda *_: (None, "there is no compiler"))
    theirs, other = logits()
    assert any(type(module).__name__ == "Linear4bit" for module in other.model.modules())
    assert any("there is no compiler" in note for note in other.notes)
    assert float((own - theirs).abs().max() / theirs.std()) < 1e-3
    assert loaded.quantization == other.quantization
    assert loaded.fingerprint != other.fingerprint  # their rows differ in the last bits
    assert loaded.weights_bytes <= 1.01 * other.weights_bytes + sum(map(scale_bytes, other.model.modules()))


def scale_bytes(module: torch.nn.Module) -> int:
    """Of bitsandbytes' scales and tables, which are no buffers of a layer, and what sixteen outputs of padding take."""
    state = getattr(getattr(module, "weight", None), "quant_state", None)
    if state is None:
        return 0
    parts = (state.absmax, state.code, state.state2.absmax, state.state2.code, state.offset)
    return sum(part.nbytes for part in parts) + 64


def test_nf4_says_how_much_it_leaves_alone(tmp_path: Path) -> None:
    """bitsandbytes quantises matrices, and a mixture's experts are fused into one parameter."""
    config = MixtralConfig(
        vocab_size=VOCABULARY_TOKENS,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        max_position_embeddings=CONTEXT_TOKENS,
        **token_ids(),
    )
    directory = save_tiny(MixtralForCausalLM, config, tmp_path / "mixture")
    loaded = load_model(ModelConfig(str(directory), "nf4", cache_dir=tmp_path, device="cpu"), print)
    experts, four_bits, router = 4 * 3 * 64 * 96, 2 * 64 * 64 + 2 * 32 * 64, 4 * 64
    share = (experts + router) / (experts + router + four_bits)
    assert loaded.quantization == f"4-bit NF4 (bitsandbytes); {share:.0%} of the layers' weights in float32"
    unload(loaded)


def test_int8_runs_a_checkpoint_and_stays_near_its_weights(tiny_dir: TinyDir, tmp_path: Path) -> None:
    def logits(quantization: str) -> tuple[str, torch.Tensor, torch.nn.Module]:
        path = str(tiny_dir("llama"))
        config = ModelConfig(model=path, quantization=quantization, cache_dir=tmp_path, device="cpu")  # type: ignore[arg-type]
        loaded = load_model(config, print)
        ids = torch.tensor([loaded.tokenizer("The lamp has changed from oil to gas.")["input_ids"]])
        with torch.inference_mode():
            return loaded.quantization, loaded.model(ids, use_cache=False).logits, loaded.model

    name, found, model = logits("int8")
    _, expected, _ = logits("none")
    assert name == "8-bit (bitsandbytes)"
    kinds = [m.matrix.kind for m in model.modules() if isinstance(m, NativeLinear) and m.matrix is not None]
    assert kinds.count(Kind.INT8) == 3 * 7
    assert 0 < float((found - expected).abs().mean() / expected.std()) < 0.05


def test_steps_of_bitsandbytes_own_int8_layers_cannot_be_recorded() -> None:
    assert waits_for_the_device(torch.nn.Sequential(Linear8bitLt(32, 32, threshold=6.0)))


@pytest.mark.parametrize(
    ("asked", "gguf", "stored", "mode", "note"),
    [
        ("auto", True, None, "shipped", "Quantization auto: shipped, because a GGUF keeps its own grid."),
        ("auto", False, None, "nf4", "Quantization auto: nf4, because its weights are 16- or 32-bit numbers."),
        ("auto", False, FP8, "shipped", "Quantization auto: shipped, because the checkpoint is already quantised."),
        ("none", False, FP8, "none", None),
        ("nf4", False, NF4, "shipped", "Quantization nf4: shipped, because the checkpoint is already quantised."),
        (
            *("auto", False, COMPRESSED, "shipped"),
            "Quantization auto: shipped, because the checkpoint is already quantised.",
        ),
        ("nf4", True, None, "nf4", None),
        ("int8", False, BNB, "shipped", "Quantization int8: shipped, because the checkpoint is already quantised."),
        ("int8", False, None, "int8", None),
        ("none", True, None, "none", None),
    ],
)
def test_auto_chooses_and_says_why(
    asked: Quantization, gguf: bool, stored: StoredFormat | None, mode: str, note: str | None
) -> None:
    precision = choose_precision(asked, "cpu", gguf, stored)
    assert (precision.mode, precision.note) == (mode, note)
    assert precision.compute_dtype == torch.float32


@pytest.mark.parametrize(
    ("inputs", "mode"),
    [
        (None, "shipped"),
        ({"num_bits": 8, "type": "float"}, "shipped"),
        ({"num_bits": 8, "type": "int"}, "none"),
    ],
    ids=["16 bits", "FP8", "int8"],
)
def test_weights_for_activations_in_int8_are_de_quantised_on_a_gpu(
    inputs: dict[str, Any] | None, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **kwargs: True)
    group = {"weights": {"num_bits": 8, "type": "int"}, "input_activations": inputs}
    settings = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}
    precision = choose_precision("auto", "cuda:0", False, StoredFormat("compressed-tensors", settings))
    assert precision.mode == mode
    assert ("made for rounded activations, which do not run here" in str(precision.note)) == (mode == "none")
