"""Our own CPU kernels: the file's weights exactly, the model's own logits, and the same bits however rows are cut."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType, quantize
from torch import nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from model_runtime.forward.attention import StepAborted
from model_runtime.forward.cpu_activations import Activations, activation_bits, float_activations, use_activations
from model_runtime.forward.native_forward import (
    EXACT_GAP,
    HALF_GAP,
    INTEGER_GAPS,
    NativeForward,
    continued,
    gap_to,
    rounding_gap,
    runs_natively,
)
from model_runtime.forward.probe import probe_packing
from model_runtime.forward.runtime import open_slabs
from model_runtime.forward.transformers_forward import Feed, PackedForward
from model_runtime.interface.config import CpuActivations
from model_runtime.interface.errors import ModelLoadError
from model_runtime.kv.geometry import KVGeometry
from model_runtime.kv.slab import KVSlab
from model_runtime.native.native_library import NativeUnavailable, native_library
from model_runtime.weights.native_matrix import Kind, NativeLinear, NativeMatrix
from model_runtime.weights.q4_blocks import read_q4_0, read_q4_1, read_q8_0
from model_runtime.weights.stored_weights import Stored, dense

CONTEXT_TOKENS = 1024
SHARED = {
    "vocab_size": 500,  # no multiple of 32
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": CONTEXT_TOKENS,
    "initializer_range": 0.2,
}
GEMMA = {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "sliding_window": 70,  # a row sees keys of two splits at most
    "query_pre_attn_scalar": 24,
    "tie_word_embeddings": False,
}
READ = {
    "Q4_0": (GGMLQuantizationType.Q4_0, read_q4_0),
    "Q4_1": (GGMLQuantizationType.Q4_1, read_q4_1),
    "Q8_0": (GGMLQuantizationType.Q8_0, read_q8_0),
}


def stored(kind: str, weight: torch.Tensor) -> Stored:
    """The weights as a file of that kind has them."""
    if kind in READ:
        quantization, read = READ[kind]
        return read(torch.from_numpy(quantize(weight.float().numpy(), quantization)))
    return weight.to(torch.float16) if kind == "F16" else weight


def native(model: PreTrainedModel, kind: str, library: ctypes.CDLL) -> PreTrainedModel:
    """The model on native matrices; its other weights stay."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            bias = None if module.bias is None else module.bias.detach()
            model.set_submodule(name, NativeLinear(NativeMatrix(stored(kind, module.weight.detach()), bias, library)))
    return model


def tiny(name: str) -> PreTrainedModel:
    torch.manual_seed(11)
    if name == "llama":
        return LlamaForCausalLM(LlamaConfig(**SHARED)).eval()
    if name == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**SHARED)).eval()
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.normal_(module.bias, std=0.3)
        return model
    if name == "gemma3":
        model = Gemma3ForCausalLM(Gemma3TextConfig(**SHARED | GEMMA)).eval()
        for module in model.modules():
            if type(module).__name__ == "Gemma3RMSNorm":
                nn.init.normal_(module.weight, std=0.3)
        return model
    model = Qwen3ForCausalLM(Qwen3Config(**SHARED)).eval()
    for module in model.modules():
        if type(module).__name__ == "Qwen3RMSNorm":
            nn.init.normal_(module.weight, mean=1, std=0.3)
    return model


def ids_of(tokens: int, seed: int = 5) -> list[int]:
    return torch.randint(0, SHARED["vocab_size"], (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture
def model(library: ctypes.CDLL) -> PreTrainedModel:
    return native(tiny("llama"), "Q4_1", library)


@pytest.fixture(params=[torch.float32, torch.float16], ids=str)
def kv_dtype(request: pytest.FixtureRequest) -> torch.dtype:
    dtype: torch.dtype = request.param
    return dtype


def geometry_of(model: PreTrainedModel, kv_dtype: torch.dtype = torch.float32) -> KVGeometry:
    return replace(probe_packing(model, torch.float32, CONTEXT_TOKENS, step_tokens=16), dtype=kv_dtype)


def slab_of(model: PreTrainedModel, kv_dtype: torch.dtype = torch.float32) -> KVSlab:
    return KVSlab(geometry_of(model, kv_dtype))


def fed(forward: NativeForward | PackedForward, slab: KVSlab, ids: list[int], cuts: list[int]) -> torch.Tensor:
    """Logits of every position, fed in pieces of those sizes, in turns."""
    rows, start = [], 0
    while start < len(ids):
        piece = ids[start : start + cuts[len(rows) % len(cuts)]]
        rows.append(forward.run([Feed(slab, piece, len(piece))]))
        start += len(piece)
    return torch.cat(rows)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "F16", "F32"])
def test_a_matrix_multiplies_with_the_files_own_weights(kind: str, library: ctypes.CDLL) -> None:
    torch.manual_seed(3)
    weights, bias = stored(kind, torch.randn(200, 96) * 0.1), torch.randn(200)
    matrix = NativeMatrix(weights, bias, library)
    x = torch.randn(29, 96)
    expected = x.double() @ dense(weights).double().t() + bias.double()
    torch.testing.assert_close(matrix.multiply(x).double(), expected, rtol=0, atol=2e-6)
    assert matrix.kind == {"Q8_0": Kind.Q8, "F16": Kind.HALF, "F32": Kind.SINGLE}.get(kind, Kind.Q4)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_a_row_has_the_same_bits_beside_any_other_rows(kind: str, library: ctypes.CDLL) -> None:
    torch.manual_seed(4)
    matrix = NativeMatrix(stored(kind, torch.randn(64, 160)), None, library)
    x = torch.randn(26, 160)
    alone = torch.cat([matrix.multiply(row[None]) for row in x])
    for rows in range(2, 27):
        assert torch.equal(matrix.multiply(x[:rows]), alone[:rows])


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma3"])
@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
def test_logits_are_those_of_the_models_own_layers(name: str, kind: str, library: ctypes.CDLL) -> None:
    model = native(tiny(name), kind, library)
    assert runs_natively(model)
    ids = ids_of(700)
    expected = fed(PackedForward(model), slab_of(model), ids, [len(ids)])
    native_forward, slab = NativeForward(model), slab_of(model)
    found = fed(native_forward, slab, ids, [300, 1, 1, 7, 200, 1, 40])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.std()))
    assert torch.equal(found.argmax(-1), expected.argmax(-1))
    assert slab.token_ids == ids
    geometry = geometry_of(model)
    assert gap_to(native_forward, model, geometry, geometry) <= EXACT_GAP


def test_rows_in_float16_are_the_rounded_ones_and_change_the_logits_little(model: PreTrainedModel) -> None:
    ids, whole, half = ids_of(300), slab_of(model), slab_of(model, torch.float16)
    exact = fed(NativeForward(model), whole, ids, [len(ids)])
    found = fed(NativeForward(model), half, ids, [len(ids)])
    assert torch.equal(half.keys[0][:, : len(ids)], whole.keys[0][:, : len(ids)].half())
    assert torch.equal(half.values[0][:, : len(ids)], whole.values[0][:, : len(ids)].half())
    assert not torch.equal(found, exact)
    assert float((found - exact).abs().max() / exact.std()) <= HALF_GAP


def test_numbers_are_rounded_to_float16_as_torch_rounds_them(library: ctypes.CDLL) -> None:
    """Ties to even, subnormals and zeros; what is too large becomes the largest number instead of infinity."""
    bits = torch.randint(-(2**31), 2**31 - 1, (1 << 16,), generator=torch.Generator().manual_seed(2), dtype=torch.int64)
    floats = bits.to(torch.int32).view(torch.float32)
    halves = torch.arange(0x7C00, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    ties = (halves[:-1] + halves[1:]) / 2
    numbers = torch.cat([floats[floats.isfinite()], halves, ties, -ties, ties.nextafter(torch.tensor(0.0))])
    numbers = torch.cat([numbers, numbers.new_zeros(-len(numbers) % 16)])
    found = torch.empty(len(numbers), dtype=torch.float16)
    library.keepwarm_to_halves(numbers.data_ptr(), found.data_ptr(), len(numbers))
    assert torch.equal(found.view(torch.int16), numbers.clamp(-65504, 65504).half().view(torch.int16))


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_cached_equals_uncached_to_the_bit(name: str, kv_dtype: torch.dtype, library: ctypes.CDLL) -> None:
    model = native(tiny(name), "Q4_1", library)
    forward, ids = NativeForward(model), ids_of(650)
    whole = fed(forward, slab_of(model, kv_dtype), ids, [len(ids)])
    for cuts in ([1], [48, 1, 1, 1], [257, 13]):
        assert torch.equal(fed(forward, slab_of(model, kv_dtype), ids, cuts), whole)


@pytest.mark.parametrize("group", [1, 2, 4, 5, 7, 8])
def test_few_queries_have_the_bits_of_many(group: int, library: ctypes.CDLL) -> None:
    """Query heads that share a KV head: steps of one row have loops of their own for some numbers of them."""
    torch.manual_seed(11)
    heads = {"num_attention_heads": group, "num_key_value_heads": 1, "head_dim": 64, "hidden_size": 32 * group}
    config = LlamaConfig(**SHARED | heads | {"num_hidden_layers": 1})
    model = native(LlamaForCausalLM(config).eval(), "Q4_1", library)
    forward, ids = NativeForward(model), ids_of(330)
    whole = fed(forward, slab_of(model, torch.float16), ids, [len(ids)])
    assert torch.equal(fed(forward, slab_of(model, torch.float16), ids, [303, *[1] * 27]), whole)


@pytest.mark.parametrize(("activations", "least"), [("int8", 1e-4), ("int16", 1e-6)])
@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
def test_with_activations_as_whole_numbers_cached_equals_uncached_to_the_bit(
    kind: str, activations: CpuActivations, least: float, library: ctypes.CDLL, kv_dtype: torch.dtype
) -> None:
    model, ids = native(tiny("qwen3"), kind, library), ids_of(130)
    exact = fed(NativeForward(model), slab_of(model, kv_dtype), ids, [len(ids)])
    assert use_activations(model, activations).kind == activations
    forward = NativeForward(model)
    whole = fed(forward, slab_of(model, kv_dtype), ids, [len(ids)])
    for cuts in ([1], [48, 1, 2, 3, 13], [101, 5]):
        assert torch.equal(fed(forward, slab_of(model, kv_dtype), ids, cuts), whole)
    rms = float(((whole - exact) / exact.std()).square().mean().sqrt())
    assert least < rms < 500 * least
    with float_activations(model):
        assert torch.equal(fed(NativeForward(model), slab_of(model, kv_dtype), ids, [48]), exact)


@pytest.mark.parametrize(("activations", "least"), [("int8", 1e-4), ("int16", 1e-6)])
def test_kernels_are_compared_in_float32_before_activations_are_rounded(
    activations: CpuActivations, least: float, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = geometry_of(model)
    use_activations(model, activations)
    bits = activation_bits(model)
    assert bits == int(activations.removeprefix("int"))
    runtime = open_slabs(model, geometry)
    assert isinstance(runtime.forward, NativeForward)
    assert runtime.forward.struct.head.takes_bytes == bits // 8
    assert runtime.geometry.dtype == torch.float16
    with float_activations(model):
        exact = continued(NativeForward(model), SHARED["vocab_size"], geometry)
    gap = rounding_gap(continued(runtime.forward, SHARED["vocab_size"], geometry), exact)
    assert least < gap < INTEGER_GAPS[bits] / 2
    runtime.forward.struct.head.minimum = None
    assert rounding_gap(continued(runtime.forward, SHARED["vocab_size"], geometry), exact) > INTEGER_GAPS[8]
    monkeypatch.setitem(INTEGER_GAPS, bits, 1e-8)
    with pytest.raises(ModelLoadError, match="Start with --cpu-activations float32"):
        open_slabs(model, geometry)


def test_a_model_that_cannot_multiply_bytes_says_so_if_asked(library: ctypes.CDLL) -> None:
    for model, why in (
        (tiny("llama"), "does not run in them"),
        (native(tiny("llama"), "F16", library), "stay float32"),
    ):
        with pytest.raises(ModelLoadError, match=why):
            use_activations(model, "int8")
    assert use_activations(tiny("llama"), "auto") == Activations("")


def test_cropping_and_going_on_equals_reading_to_the_bit(model: PreTrainedModel, kv_dtype: torch.dtype) -> None:
    forward, slab, ids = NativeForward(model), slab_of(model, kv_dtype), ids_of(90)
    fed(forward, slab, [*ids[:50], *ids_of(30, seed=6)], [40])
    slab.crop(50)
    went_on = fed(forward, slab, ids[50:], [3])
    assert torch.equal(went_on, fed(forward, slab_of(model, kv_dtype), ids, [len(ids)])[50:])


def test_conversations_in_one_step_do_not_touch_each_other(model: PreTrainedModel, kv_dtype: torch.dtype) -> None:
    forward = NativeForward(model)
    ledgers = [ids_of(tokens, seed=tokens) for tokens in (300, 20, 3)]
    slabs = [slab_of(model, kv_dtype) for _ in ledgers]
    forward.run([Feed(slab, ids[:-2], 0) for slab, ids in zip(slabs, ledgers, strict=True)])
    together = forward.run([Feed(slab, ids[-2:], 2) for slab, ids in zip(slabs, ledgers, strict=True)])
    alone = [fed(forward, slab_of(model, kv_dtype), ids, [len(ids)])[-2:] for ids in ledgers]
    assert torch.equal(together, torch.cat(alone))


def test_an_abort_between_layers_leaves_the_slab_as_it_was(model: PreTrainedModel) -> None:
    forward, slab, ids = NativeForward(model), slab_of(model), ids_of(2000 // 3)
    fed(forward, slab, ids[:20], [20])
    asked = []

    def abort_if() -> bool:
        asked.append(1)
        return len(asked) > 1

    many = ids_of(CONTEXT_TOKENS - 20)
    with pytest.raises(StepAborted):
        NativeForward(model).run([Feed(slab, many * 5, 1)], abort_if)
    assert slab.token_ids == ids[:20]
    went_on = fed(forward, slab, ids[20:], [100])
    assert torch.equal(went_on, fed(forward, slab_of(model), ids, [len(ids)])[20:])


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_act": "gelu"},
        {"head_dim": 16},
        {"layer_types": ["sliding_attention"] * 3, "sliding_window": 8, "use_sliding_window": True},
    ],
)
def test_a_model_that_the_kernels_do_not_compute_is_left_to_torch(change: dict[str, object], build_dir: Path) -> None:
    library = native_library(build_dir, print)
    model = native(Qwen3ForCausalLM(Qwen3Config(**SHARED | change)), "Q4_1", library)
    assert not runs_natively(model)
    assert not runs_natively(tiny("qwen3"))


def test_a_kernel_that_miscalculates_is_found_out(model: PreTrainedModel) -> None:
    geometry = geometry_of(model)
    forward = NativeForward(model)
    forward.struct.score_scale *= 1.05
    assert gap_to(forward, model, geometry, geometry) > EXACT_GAP


def test_a_model_whose_keys_do_not_fit_into_float16_keeps_float32(model: PreTrainedModel) -> None:
    for layer in model.model.layers:
        layer.input_layernorm.weight.data *= 1e6
    geometry = geometry_of(model)
    assert open_slabs(model, geometry).geometry.dtype == torch.float32
    with pytest.raises(ModelLoadError, match="cannot be kept in float16"):
        open_slabs(model, geometry, "float16")


def test_rows_are_float16_unless_float32_is_asked_for(model: PreTrainedModel) -> None:
    geometry = geometry_of(model)
    for asked, dtype in {"auto": torch.float16, "float16": torch.float16, "float32": torch.float32}.items():
        runtime = open_slabs(model, geometry, asked)  # type: ignore[arg-type]
        assert runtime.geometry.dtype == runtime.place.new_kv().keys[0].dtype == dtype
        assert runtime.kernel.endswith(f"{dtype} KV".removeprefix("torch."))
    with pytest.raises(ModelLoadError, match="in float32 on cpu; only Keepwarm's own CPU kernels leave a choice"):
        open_slabs(tiny("llama"), geometry, "float16")


def test_without_a_compiler_the_reason_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(NativeUnavailable, match="there is no C compiler"):
        native_library(tmp_path, print)


def test_a_compiler_that_fails_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(NativeUnavailable, match=r"failed: .*error"):
        native_library(tmp_path, print, ("-fno-such-flag",))
    assert list((tmp_path / "native").iterdir()) == []


def path_of(library: ctypes.CDLL) -> Path:
    return Path(library._name)  # noqa: SLF001 - ctypes has no public name for it


def test_a_damaged_library_is_built_again(build_dir: Path, tmp_path: Path) -> None:
    said: list[str] = []
    name = path_of(native_library(build_dir, said.append)).name
    (tmp_path / "native").mkdir()
    (tmp_path / "native" / name).write_bytes(b"cut off")
    said.clear()
    assert path_of(native_library(tmp_path, said.append)).stat().st_size > 10_000
    assert said == ["Compiling the CPU kernels for this processor (once, a few seconds)."]


def test_activations_as_bytes_are_compared_outside_our_own_step_too(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_runtime.forward.runtime.runs_natively", lambda _: False)
    use_activations(model, "int8")
    assert not isinstance(open_slabs(model, geometry_of(model)).forward, NativeForward)
    monkeypatch.setitem(INTEGER_GAPS, 8, 1e-6)
    with pytest.raises(ModelLoadError, match="Start with --cpu-activations float32"):
        open_slabs(model, geometry_of(model))
