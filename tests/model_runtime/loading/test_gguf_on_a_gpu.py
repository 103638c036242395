"""GGUF files on a device that is no plain CPU: layers keep the file's bits where that has proved correct, as on a GPU,
with the kernels' twin."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType

from model_runtime.forward.few_rows.coded.coded_embedding import CodedEmbedding
from model_runtime.forward.few_rows.coded.coded_linear import CodedLinear
from model_runtime.forward.few_rows.coded.device_layers import DeviceLayers
from model_runtime.forward.few_rows.coded.operations import TorchCodedOperations
from model_runtime.forward.few_rows.coded.planes import CodedPlanes
from model_runtime.loading import loaded_weights
from model_runtime.loading.checks.gguf_header import read_gguf_header
from model_runtime.loading.fit.needs import Machine, gguf_needs
from model_runtime.loading.loaded_weights import LoadedWeights, load_weights
from model_runtime.loading.model_cache import converted_gguf
from model_runtime.weights.quantization import Precision
from tests.conftest import TinyDir
from tests.model_runtime.loading.gguf.blocks import blocks_of, wide
from tests.model_runtime.tiny_gguf import write_gguf

DEVICE = "cpu:0"  # for the loader not the CPU


class Wrong(TorchCodedOperations):
    def multiply(self, planes: CodedPlanes, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return super().multiply(planes, x, bias) * 1.1


def loaded(
    folder: Path,
    operations: TorchCodedOperations | None,
    kind: str,
    patch: pytest.MonkeyPatch,
    source: Path,
    dtype: torch.dtype = torch.float32,
) -> LoadedWeights:
    """A tiny Llama."""
    gguf = folder / f"{kind}.gguf"
    if not gguf.exists():
        write_gguf(source, gguf, GGMLQuantizationType[kind])
    return read(gguf, operations, patch, dtype)


def read(
    gguf: Path, operations: TorchCodedOperations | None, patch: pytest.MonkeyPatch, dtype: torch.dtype = torch.float32
) -> LoadedWeights:
    """Without operations as where our kernels cannot run at all."""
    made = None if operations is None else DeviceLayers(torch.device("cpu"), dtype, operations)
    patch.setattr(loaded_weights, "device_layers", lambda device, dtype: made)
    cache = gguf.parent / "cache"
    directory = converted_gguf(lambda: gguf, gguf.stem, cache, lambda _: None)
    return load_weights(directory, True, Precision("shipped", dtype, None), DEVICE, cache, lambda _: None)


@torch.inference_mode()
def logits(one: LoadedWeights, tokens: int) -> torch.Tensor:
    ids = torch.arange(tokens).remainder(50)[None]
    found: torch.Tensor = one.model(ids, use_cache=False).logits
    return found


def test_layers_keep_their_bits_and_compute_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_dir: TinyDir
) -> None:
    for kind in ("Q4_0", "Q4_1", "Q8_0"):
        plain = loaded(tmp_path, None, kind, monkeypatch, tiny_dir("llama"))
        kept = loaded(tmp_path, TorchCodedOperations(), kind, monkeypatch, tiny_dir("llama"))
        layers = [module for module in kept.model.modules() if isinstance(module, CodedLinear)]
        assert len(layers) >= 7 * kept.model.config.num_hidden_layers
        assert kept.quantization.startswith(f"{kind[1]}-bit ({kind} as shipped)")
        assert plain.quantization == f"float32 (from {kind})"
        assert kept.kernel != plain.kernel  # saved KVs are not mixed
        assert not any("de-quantised" in note for note in kept.notes)
        for tokens in (3, 80):
            torch.testing.assert_close(logits(kept, tokens), logits(plain, tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama heads", "llama tied", "gemma3", "gemma2"])
def test_embeddings_keep_their_bits_with_a_head_of_their_own_or_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma multiplies its embeddings."""
    case = wide(name)
    model = case.model()
    gguf = case.write(
        tmp_path / "model.gguf",
        model,
        raw=blocks_of(case, model, lambda short: "Q6_K" if short in ("token_embd", "output") else "Q4_K"),
    )
    plain, kept = (read(gguf, one, monkeypatch) for one in (None, TorchCodedOperations()))
    table, head = kept.model.get_input_embeddings(), kept.model.get_output_embeddings()
    assert isinstance(table, CodedEmbedding)
    assert isinstance(head, CodedLinear)
    assert (table.planes is head.planes) == model.config.tie_word_embeddings
    assert not [name for name, one in kept.model.named_parameters() if one.ndim > 1]
    for tokens in (3, 80):
        torch.testing.assert_close(logits(kept, tokens), logits(plain, tokens), rtol=1e-3, atol=1e-3)
    held = sum(getattr(module, "hidden_bytes", 0) for module in kept.model.modules())
    needs = gguf_needs(read_gguf_header(gguf), Machine("cuda:0", has_own_kernels=True)).weights_bytes["shipped"]
    assert 0.96 < needs / held < 1.05  # norms are not among the hidden ones


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_the_size_that_is_counted_before_is_what_the_device_holds(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_dir: TinyDir
) -> None:
    kept = loaded(tmp_path, TorchCodedOperations(), kind, monkeypatch, tiny_dir("llama"), torch.bfloat16)
    held = sum(parameter.nbytes for parameter in kept.model.parameters())
    held += sum(getattr(module, "hidden_bytes", 0) for module in kept.model.modules())
    needs = gguf_needs(read_gguf_header(tmp_path / f"{kind}.gguf"), Machine("cuda:0", has_own_kernels=True))
    assert 0.96 < needs.weights_bytes["shipped"] / held <= 1.001


def test_a_wrong_kernel_is_said_and_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_dir: TinyDir
) -> None:
    plain, wrong = (loaded(tmp_path, one, "Q4_1", monkeypatch, tiny_dir("llama")) for one in (None, Wrong()))
    assert not any(isinstance(module, CodedLinear) for module in wrong.model.modules())
    assert torch.equal(logits(wrong, 5), logits(plain, 5))
    assert (wrong.quantization, wrong.kernel) == (plain.quantization, plain.kernel)
    assert any("Weights of Q4_1 run de-quantised" in note and "wrong on this device" in note for note in wrong.notes)
