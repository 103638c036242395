"""GGUF files of every type at their own bits: in our own kernels, with the logits of the de-quantised model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType, LlamaFileType
from safetensors.torch import load_file, save_file

from model_runtime.engine.verification import EXACT, ROUNDED, tolerance_of
from model_runtime.forward.cpu_activations import has_integer_activations
from model_runtime.forward.native_forward import INTEGER_GAPS, NativeForward, runs_natively
from model_runtime.forward.probe import probe_packing
from model_runtime.forward.transformers_forward import Feed
from model_runtime.interface.config import ModelConfig
from model_runtime.interface.errors import ModelLoadError
from model_runtime.kv.geometry import KVGeometry, LayerShape
from model_runtime.kv.slab import KVSlab
from model_runtime.loading.loaded import LoadedModel
from model_runtime.loading.loading import load_model
from model_runtime.loading.model_cache import converted_gguf
from model_runtime.weights.coded.codebooks import CODEBOOKS, held_bytes
from model_runtime.weights.coded.coded_rows import BLOCK
from model_runtime.weights.coded.ggml_formats import FORMATS
from model_runtime.weights.native_experts import NativeExperts
from model_runtime.weights.native_matrix import NativeEmbedding, NativeLinear
from tests.model_runtime.loading.gguf.blocks import blocks_of, wide
from tests.model_runtime.loading.gguf.cases import CASES, IDS
from tests.model_runtime.loading.gguf.test_families import Load, gap, logits_of
from tests.model_runtime.tiny_blocks import HALVES

_EXACT = 1e-3  # standard deviations of the logits
MIX = {"ffn_down": "Q6_K", "attn_v": "Q6_K", "token_embd": "Q6_K", "output": "Q6_K"}  # of Q4_K_M


def in_pieces(loaded: LoadedModel, cuts: list[int]) -> torch.Tensor:
    """Logits of all positions from our own forward, on a KV that is fed in pieces."""
    config = loaded.model.config
    shape = LayerShape(config.num_key_value_heads, config.head_dim, config.head_dim)
    slab = KVSlab(KVGeometry((shape,) * config.num_hidden_layers, torch.float32, torch.device("cpu")))
    forward, rows, start = NativeForward(loaded.model), [], 0
    while start < len(IDS):
        piece = IDS[start : start + cuts[len(rows) % len(cuts)]]
        rows.append(forward.run([Feed(slab, piece, len(piece))]))
        start += len(piece)
    return torch.cat(rows)


@pytest.mark.parametrize("kind", HALVES)
def test_a_file_of_one_type_runs_at_its_bits(kind: str, tmp_path: Path, load: Load) -> None:
    case = wide("llama heads")
    model = case.model()
    raw = blocks_of(case, model, lambda short: kind)
    shipped = load(case.write(tmp_path / "model.gguf", model, raw=raw), "shipped")
    assert runs_natively(shipped.model)
    assert shipped.quantization == f"{next(c for c in kind if c.isdigit())}-bit ({kind} as shipped)"
    assert not any("de-quantised" in note for note in shipped.notes)
    exact = logits_of(load(tmp_path / "model.gguf", "none").model)
    found = in_pieces(shipped, [len(IDS)])
    assert gap(found, exact) < _EXACT
    assert torch.equal(in_pieces(shipped, [1, 30, 7]), found)
    norms = sum(p.nbytes for p in shipped.model.parameters())
    tables = sum(b.nbytes for b in shipped.model.buffers())
    held = sum(rows.nbytes for rows, _ in raw.values())
    if kind in CODEBOOKS:
        bits = 4.6 if FORMATS[kind].grid.run == 16 else 4.3
        assert f"Weights of {kind} are held in {bits} bits, with the values they were shipped with." in shipped.notes
        held = held_bytes(kind, held // FORMATS[kind].block_bytes * BLOCK)
    assert shipped.weights_bytes - norms - tables <= 1.05 * held + 4096


@pytest.mark.parametrize("name", ["llama heads", "gemma3"])
def test_activations_as_bytes_are_said_and_kept_apart_from_float32(name: str, tmp_path: Path, build_dir: Path) -> None:
    """In the C step, and in a family outside of it."""
    case = wide(name)
    model = case.model()
    path = case.write(tmp_path / "model.gguf", model, raw=blocks_of(case, model, lambda short: MIX.get(short, "Q4_K")))
    config = ModelConfig(str(path), "shipped", cache_dir=build_dir)
    exact, rounded = load_model(config, print), load_model(replace(config, cpu_activations="int8"), print)
    assert rounded.fingerprint == f"{exact.fingerprint}; activations: int8"
    assert rounded.quantization == f"{exact.quantization}, int8 activations"
    assert "Activations are rounded to bytes" in " ".join(rounded.notes)
    expected = logits_of(exact.model)
    rms = float(((logits_of(rounded.model) - expected) / expected.std()).square().mean().sqrt())
    assert 1e-4 < rms < INTEGER_GAPS[8]
    probe_packing(rounded.model, torch.float32, 256, step_tokens=16)  # compares within 0.001
    assert has_integer_activations(rounded.model)
    allowed = EXACT if runs_natively(rounded.model) else ROUNDED
    assert tolerance_of(rounded.model, torch.float32, "exact") is allowed


@pytest.mark.parametrize("kind", ["Q4_K", "IQ4_XS", "IQ2_XXS", "IQ3_XXS"])
def test_activations_of_two_bytes_run_in_the_step(kind: str, tmp_path: Path, build_dir: Path) -> None:
    """Levels too, whole numbers or multiples of another unit."""
    case = wide("llama tied")
    model = case.model()
    path = case.write(tmp_path / "model.gguf", model, raw=blocks_of(case, model, lambda short: MIX.get(short, kind)))
    config = ModelConfig(str(path), "shipped", cache_dir=build_dir)
    exact, rounded = load_model(config, print), load_model(replace(config, cpu_activations="int16"), print)
    expected, found = in_pieces(exact, [len(IDS)]), in_pieces(rounded, [len(IDS)])
    rms = float(((found - expected) / expected.std()).square().mean().sqrt())
    assert 0 < rms < INTEGER_GAPS[16]
    assert torch.equal(in_pieces(rounded, [1, 3]), found)


@pytest.mark.parametrize("name", ["llama tied", "qwen2", "qwen3", "gemma3", "gemma2", "phi3", "starcoder2", "stablelm"])
def test_q4_k_m_runs_at_its_bits_in_every_family(name: str, tmp_path: Path, load: Load) -> None:
    compare_mix(name, tmp_path, load)


@pytest.mark.parametrize("name", ["bloom", "falcon two norms", "nemotron", "mistral", "gpt2"])
def test_q4_k_m_runs_at_its_bits_in_classic_families_too(name: str, tmp_path: Path, load: Load) -> None:
    compare_mix(name, tmp_path, load)


def compare_mix(name: str, tmp_path: Path, load: Load) -> None:
    case = wide(name)
    model = case.model()
    keys = case.all_keys(model) | {"general.file_type": int(LlamaFileType.MOSTLY_Q4_K_M)}
    raw = blocks_of(case, model, lambda short: None if short == "position_embd" else MIX.get(short, "Q4_K"))
    path = case.write(tmp_path / "model.gguf", model, keys=keys, raw=raw)
    shipped, exact = load(path, "shipped"), load(path, "none")
    assert shipped.quantization == "4-bit (Q4_K_M as shipped)"
    assert gap(logits_of(shipped.model), logits_of(exact.model)) < _EXACT
    assert isinstance(shipped.model.get_input_embeddings(), NativeEmbedding)
    linear = [module for module in shipped.model.modules() if isinstance(module, torch.nn.Linear)]
    assert linear == []
    head = shipped.model.get_output_embeddings()
    assert isinstance(head, NativeLinear)
    if model.config.tie_word_embeddings:
        assert head.matrix is shipped.model.get_input_embeddings().matrix  # in memory once
        assert shipped.weights_bytes < 1.1 * sum(rows.nbytes for rows, _ in raw.values()) + 64_000


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "F16"])
def test_experts_keep_their_bits(kind: str, tmp_path: Path, load: Load) -> None:
    case = CASES["qwen3moe"]
    model = case.model()
    path = case.write(tmp_path / "model.gguf", model, GGMLQuantizationType[kind])
    shipped, exact = load(path, "shipped"), load(path, "none")
    assert " de-quantised" not in " ".join(shipped.notes)
    assert "% of the layers' weights" not in shipped.quantization
    experts = [module for module in shipped.model.modules() if isinstance(module, NativeExperts)]
    assert len(experts) == model.config.num_hidden_layers
    assert gap(logits_of(shipped.model), logits_of(exact.model)) < _EXACT
    assert shipped.weights_bytes < 0.8 * exact.weights_bytes


def test_types_without_a_kernel_say_that_they_run_de_quantised(tmp_path: Path, load: Load) -> None:
    case = wide("llama heads")
    model = case.model()
    tensors = {name: weights for name, weights in case.all_tensors(model).items() if name.endswith("ffn_up.weight")}
    rows = {name: torch.randint(0, 40, (256, 66), dtype=torch.uint8).numpy() for name in tensors}
    raw = {name: (part, GGMLQuantizationType.TQ2_0) for name, part in rows.items()}
    loaded = load(case.write(tmp_path / "model.gguf", model, GGMLQuantizationType.Q8_0, raw=raw), "shipped")
    assert "2 tensors of type TQ2_0 run de-quantised." in loaded.notes
    assert "% of the layers' weights in float32" in loaded.quantization


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
def test_de_quantised_numbers_are_not_called_shipped_although_sixteen_bits_hold_them(
    kind: str, tmp_path: Path, load: Load
) -> None:
    case, ternary = wide("llama heads"), GGMLQuantizationType[kind]
    model = case.model()
    loaded = load(case.write(tmp_path / "model.gguf", model, ternary), "shipped")
    assert f"of type {kind} run de-quantised" in " ".join(loaded.notes)
    assert loaded.quantization == f"float32 (from {kind})"


@pytest.mark.parametrize(("kind", "bits"), [("F16", 16), ("BF16", 16)])
def test_sixteen_bits_stay_sixteen(kind: str, bits: int, tmp_path: Path, load: Load) -> None:
    case = CASES["llama heads"]
    model = case.model()
    path = case.write(tmp_path / "model.gguf", model, GGMLQuantizationType[kind])
    shipped = load(path, "shipped")
    assert shipped.quantization == f"{bits}-bit ({kind} as shipped)"
    assert gap(logits_of(shipped.model), logits_of(load(path, "none").model)) < _EXACT


def test_a_mixture_that_the_file_only_claims_is_not_said(tmp_path: Path, load: Load) -> None:
    case = CASES["llama heads"]
    model = case.model()
    keys = case.all_keys(model) | {"general.file_type": int(LlamaFileType.MOSTLY_Q4_K_M)}
    path = case.write(tmp_path / "model.gguf", model, GGMLQuantizationType.Q8_0, keys=keys)
    assert load(path, "shipped").quantization == "8-bit (Q8_0 as shipped)"


def test_an_infinite_scale_is_refused(tmp_path: Path, load: Load) -> None:
    case = wide("llama heads")
    model = case.model()
    raw = blocks_of(case, model, lambda short: "Q4_K")
    rows, _ = raw["blk.1.ffn_up.weight"]
    rows[5, 1] = 0x7C
    with pytest.raises(ModelLoadError, match="a scale that is not a finite number"):
        load(case.write(tmp_path / "model.gguf", model, raw=raw), "shipped")


def test_a_conversion_is_the_safetensors_librarys_bytes(tmp_path: Path) -> None:
    case = wide("llama heads")
    model = case.model()
    kinds = {"ffn_up": "Q4_K", "ffn_down": "Q8_0", "attn_q": "Q4_1", "attn_k": "Q4_0", "output": "Q6_K"}
    path = case.write(tmp_path / "m.gguf", model, GGMLQuantizationType.BF16, raw=blocks_of(case, model, kinds.get))
    directory = converted_gguf(lambda: path, "key", tmp_path, lambda _: None)
    again = tmp_path / "again.safetensors"
    save_file(load_file(directory / "blocks.safetensors"), again, metadata={"format": "pt"})
    assert (directory / "blocks.safetensors").read_bytes() == again.read_bytes()
