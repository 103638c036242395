"""From a name to a running model, or to a sentence that says what is wrong."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GgufConfig

from model_runtime.interface.config import ModelConfig, Quantization
from model_runtime.interface.errors import ModelLoadError
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.loading.loaded import LoadedModel
from model_runtime.loading.loading import context_limit_tokens, load_model, unload
from model_runtime.weights.kernel_choice import kernel_plan
from model_runtime.weights.linear_int4 import Int4Linear, KernelPlan
from model_runtime.weights.native_matrix import Kind, NativeLinear
from model_runtime.weights.streamed import StreamedCheckpoint
from tests.conftest import TinyDir
from tests.model_runtime.tiny_gguf import write_gguf

Load = Callable[..., LoadedModel]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, torch_threads: int) -> Path:
    """A cache directory with this machine's kernels in it, compiled once."""
    directory = tmp_path_factory.mktemp("plan")
    kernel_plan(directory, print)
    return directory


@pytest.fixture
def load(tmp_path: Path, said: list[str], measured: Path) -> Load:
    """Loads with a cache of its own."""
    shutil.copytree(measured, tmp_path / "cache")

    def load(model: Path | str, quantization: Quantization = "none") -> LoadedModel:
        config = ModelConfig(str(model), quantization, cache_dir=tmp_path / "cache", device="cpu")
        return load_model(config, said.append)

    return load


@pytest.fixture
def gguf_file(tiny_dir: TinyDir, tmp_path: Path) -> Path:
    return write_gguf(tiny_dir("llama"), tmp_path / "tiny.Q4_1.gguf", GGMLQuantizationType.Q4_1)


def logits(loaded: LoadedModel) -> torch.Tensor:
    ids = torch.tensor([loaded.tokenizer("A lighthouse works because light travels in straight lines.")["input_ids"]])
    with torch.inference_mode():
        return loaded.model(ids, use_cache=False).logits


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gptbigcode"])
def test_a_directory_is_loaded_as_it_is(name: str, tiny_dir: TinyDir, load: Load) -> None:
    loaded = load(tiny_dir(name))
    stored = AutoModelForCausalLM.from_pretrained(tiny_dir(name)).state_dict()
    assert all(torch.equal(tensor, stored[key]) for key, tensor in loaded.model.state_dict().items())
    assert (loaded.name, loaded.quantization, loaded.kv_dtype) == (name, "float32", torch.float32)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    ends = {loaded.tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")}
    assert loaded.stop_token_ids == ends
    assert loaded.weights_bytes == sum(parameter.nbytes for parameter in loaded.model.parameters()) + sum(
        buffer.nbytes for buffer in loaded.model.buffers()
    )


@pytest.mark.parametrize("mode", ["none", "nf4"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_tensor_by_tensor_is_what_transformers_loads(
    name: str, mode: Quantization, tiny_dir: TinyDir, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    streamed = load(tiny_dir(name), mode)
    monkeypatch.setattr(StreamedCheckpoint, "can_be_streamed", property(lambda _: False))
    whole = load(tiny_dir(name), mode)
    assert torch.equal(logits(streamed), logits(whole))
    assert streamed.model.generation_config.to_dict() == whole.model.generation_config.to_dict()
    assert streamed.model.config.to_dict() == whole.model.config.to_dict()
    for field in ("quantization", "weights_bytes", "fingerprint", "notes", "stop_token_ids"):
        assert getattr(streamed, field) == getattr(whole, field)


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q8_0])
def test_a_gguf_has_the_weights_transformers_reads(
    kind: GGMLQuantizationType, tiny_dir: TinyDir, tmp_path: Path, load: Load
) -> None:
    path = write_gguf(tiny_dir("llama"), tmp_path / f"{kind.name}.gguf", kind)
    loaded = load(path)
    expected = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    ).state_dict()
    found = loaded.model.state_dict()
    assert found.keys() == expected.keys()
    for key, tensor in found.items():
        torch.testing.assert_close(tensor, expected[key], rtol=0, atol=1e-6)
    assert loaded.quantization == f"float32 (from {kind.name})"


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1])
def test_a_gguf_is_kept_at_its_four_bits(
    kind: GGMLQuantizationType, tiny_dir: TinyDir, tmp_path: Path, load: Load
) -> None:
    path = write_gguf(tiny_dir("llama"), tmp_path / f"{kind.name}.gguf", kind)
    shipped, exact = load(path, "auto"), load(path, "none")
    assert shipped.quantization == f"4-bit ({kind.name} as shipped)"
    assert "Quantization auto: shipped, because a GGUF keeps its own grid." in shipped.notes
    matrices = [module.matrix for module in shipped.model.modules() if isinstance(module, NativeLinear)]
    assert sum(matrix is not None and matrix.kind is Kind.Q4 for matrix in matrices) == 3 * 7
    gap = (logits(shipped) - logits(exact)).abs().mean() / logits(exact).std()
    assert gap < 0.05
    assert shipped.tokenizer.chat_template == exact.tokenizer.chat_template
    assert shipped.tokenizer_fingerprint == exact.tokenizer_fingerprint


def test_without_the_packed_kernel_the_same_weights_run_de_quantised(
    gguf_file: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = KernelPlan(False, 0, torch.bfloat16)
    monkeypatch.setattr("model_runtime.loading.loaded_weights.kernel_plan", lambda *_: (plan, "No packed kernel here."))
    loaded, exact = load(gguf_file, "shipped"), load(gguf_file, "none")
    assert loaded.quantization == "Q4_1 de-quantised"
    assert "No packed kernel here." in loaded.notes
    assert not any(isinstance(module, Int4Linear) for module in loaded.model.modules())
    assert (logits(loaded) - logits(exact)).abs().mean() / logits(exact).std() < 0.05


def test_without_a_compiler_other_gguf_types_run_de_quantised_and_say_so(
    tiny_dir: TinyDir, tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = KernelPlan(True, 1 << 30, torch.float32)
    monkeypatch.setattr("model_runtime.loading.loaded_weights.kernel_plan", lambda *_: (plan, "No compiler here."))
    path = write_gguf(tiny_dir("llama"), tmp_path / "tiny.gguf", GGMLQuantizationType.Q5_0)
    loaded = load(path, "shipped")
    assert loaded.quantization == "float32 (from Q5_0)"
    assert loaded.notes == ("The Q5_0 weights run de-quantised in float32 on cpu.",)


def test_a_gguf_goes_through_bitsandbytes_by_a_checkpoint(gguf_file: Path, load: Load, said: list[str]) -> None:
    loaded = load(gguf_file, "nf4")
    assert loaded.quantization == "4-bit NF4 (bitsandbytes)"
    kinds = [m.matrix.kind for m in loaded.model.modules() if isinstance(m, NativeLinear) and m.matrix is not None]
    assert kinds.count(Kind.LEVELS) == 3 * 7
    assert said[-1] == "De-quantising the model to a float16 checkpoint for bitsandbytes (once)."
    said.clear()
    load(gguf_file, "nf4")
    assert said == []


def test_a_gguf_is_converted_once(gguf_file: Path, load: Load, said: list[str]) -> None:
    first, second = load(gguf_file), load(gguf_file)
    assert said == ["Converting tiny.Q4_1.gguf (once)."]
    assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize("damage", ["byte", "missing", "manifest"])
def test_a_damaged_conversion_is_built_again(
    damage: str, gguf_file: Path, tmp_path: Path, load: Load, said: list[str]
) -> None:
    expected = logits(load(gguf_file))
    directory = next(path for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir())
    weights = directory / "blocks.safetensors"
    if damage == "byte":
        data = bytearray(weights.read_bytes())
        data[-5] ^= 16
        weights.write_bytes(data)
    else:
        (weights if damage == "missing" else directory / "manifest.json").unlink()
    said.clear()
    assert torch.equal(logits(load(gguf_file)), expected)
    assert said[0].startswith("The model in the cache is damaged (")
    assert said[-1] == "Converting tiny.Q4_1.gguf (once)."
    # What no manifest names may be the user's own.
    assert any("is kept as" in sentence for sentence in said) == (damage == "manifest")


def test_two_starts_at_once_convert_once(gguf_file: Path, load: Load, said: list[str]) -> None:
    threads = [threading.Thread(target=load, args=(gguf_file,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said.count("Converting tiny.Q4_1.gguf (once).") == 1


def test_fingerprints_name_weights_precision_and_rope(tiny_dir: TinyDir, tmp_path: Path, load: Load) -> None:
    directory = shutil.copytree(tiny_dir("llama"), tmp_path / "llama")
    plain = load(directory)
    assert load(directory).fingerprint == plain.fingerprint
    assert load(directory, "nf4").fingerprint != plain.fingerprint
    config = json.loads((directory / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 20_000.0
    (directory / "config.json").write_text(json.dumps(config))
    turned = load(directory)
    assert turned.fingerprint != plain.fingerprint
    assert turned.tokenizer_fingerprint == plain.tokenizer_fingerprint
    weights = directory / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    assert load(directory).fingerprint != turned.fingerprint
    (directory / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert load(directory).tokenizer_fingerprint != plain.tokenizer_fingerprint


def test_the_authors_sampling_is_taken_and_nonsense_is_not(tiny_dir: TinyDir, tmp_path: Path, load: Load) -> None:
    directory = shutil.copytree(tiny_dir("llama"), tmp_path / "llama")
    path = directory / "generation_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.8}))
    assert load(directory).default_sampling == SamplingParams(temperature=0.6, top_k=20, top_p=0.8)
    path.write_text(json.dumps(config | {"do_sample": True, "temperature": 99.0}))
    assert load(directory).default_sampling == SamplingParams()


def test_the_context_limit_is_the_models_own_or_less(tiny_dir: TinyDir, load: Load) -> None:
    loaded = load(tiny_dir("llama"))
    assert context_limit_tokens(loaded, None) == 512
    assert context_limit_tokens(loaded, 100) == 100
    with pytest.raises(ModelLoadError, match="llama holds at most 512 tokens; 8,192 were asked for"):
        context_limit_tokens(loaded, 8192)


@pytest.mark.embedded
def test_unload_gives_the_memory_back(embedded_cache: Path) -> None:
    loaded = load_model(ModelConfig(quantization="none", cache_dir=embedded_cache, device="cpu"), print)
    process = psutil.Process()
    gc.collect()
    before_bytes = process.memory_info().rss
    unload(loaded)
    assert before_bytes - process.memory_info().rss > 0.9 * loaded.weights_bytes


@pytest.mark.embedded
def test_the_embedded_model_knows_how_to_talk(loaded_embedded: LoadedModel) -> None:
    assert loaded_embedded.name == "SmolLM2-135M-Instruct"
    assert loaded_embedded.tokenizer.convert_tokens_to_ids("<|im_end|>") in loaded_embedded.stop_token_ids
    assert loaded_embedded.default_sampling.temperature == 0.2
    assert "<|im_start|>" in str(loaded_embedded.tokenizer.chat_template)
    text = "In 2024 it's 3.14 — naïve 漢字\n\tdon't 😀"
    assert loaded_embedded.tokenizer.decode(loaded_embedded.tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("/nowhere/model", "There is no file or directory /nowhere/model."),
        ("/dev/null/model", "There is no file or directory /dev/null/model."),
        ("/dev/null", "/dev/null is neither a directory nor a .gguf file."),
        ("/" + "long" * 100, "cannot be read: File name too long."),
        (
            "~nobody-of-this-name/model",
            "~nobody-of-this-name/model cannot be read: Could not determine home directory.",
        ),
    ],
)
def test_a_model_that_can_be_nowhere_is_one_sentence(name: str, sentence: str) -> None:
    with pytest.raises(ModelLoadError, match=re.escape(sentence) + "$"):
        load_model(ModelConfig(model=name, device="cpu"), print)


def test_a_name_that_is_no_path_and_no_model_id_is_a_sentence(load: Load) -> None:
    with pytest.raises(ModelLoadError, match=r"There is no file or directory /nowhere/model\.gguf\."):
        load("/nowhere/model.gguf")


def test_a_model_that_cannot_be_fetched_is_a_sentence(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    with pytest.raises(ModelLoadError, match="nobody/nothing is neither a file nor a directory here"):
        load("nobody/nothing")


def test_a_directory_without_config_is_a_sentence(load: Load, gguf_file: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"has no config\.json\. It contains tiny\.Q4_1\.gguf: name that file"):
        load(gguf_file.parent)


def test_a_file_that_is_no_gguf_is_a_sentence(load: Load, tmp_path: Path) -> None:
    (tmp_path / "model.txt").write_bytes(b"weights")
    with pytest.raises(ModelLoadError, match=r"is neither a directory nor a \.gguf file"):
        load(tmp_path / "model.txt")
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(ModelLoadError, match=r"pipe\.gguf is neither a directory nor a \.gguf file"):
        load(tmp_path / "pipe.gguf")
    (tmp_path / "model.gguf").write_bytes(b"not a GGUF file at all")
    with pytest.raises(ModelLoadError, match=r"model\.gguf is not a GGUF file, or is incomplete"):
        load(tmp_path / "model.gguf")
    (tmp_path / "empty.gguf").write_bytes(b"")
    with pytest.raises(ModelLoadError, match=r"empty\.gguf is not a GGUF file, or is incomplete"):
        load(tmp_path / "empty.gguf")


def test_a_gguf_that_ends_early_is_a_sentence(load: Load, gguf_file: Path, tmp_path: Path) -> None:
    gguf_file.write_bytes(gguf_file.read_bytes()[:-20_000])
    with pytest.raises(ModelLoadError, match="is not a GGUF file, or is incomplete"):
        load(gguf_file)
    assert [path.name for path in (tmp_path / "cache" / "models").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ('{"model_type": "unheard-of"}', "unheard-of"),
        ("{", r"config\.json cannot be read"),
        ("[]", "does not contain a model description"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "its hidden_size is 'wide'"),
    ],
)
def test_a_config_that_cannot_be_used_is_a_sentence(
    config: str, sentence: str, tiny_dir: TinyDir, tmp_path: Path, load: Load
) -> None:
    directory = shutil.copytree(tiny_dir("llama"), tmp_path / "llama")
    (directory / "config.json").write_text(config)
    with pytest.raises(ModelLoadError, match=sentence):
        load(directory)


def test_damaged_or_missing_weights_are_a_sentence(tiny_dir: TinyDir, tmp_path: Path, load: Load) -> None:
    directory = shutil.copytree(tiny_dir("llama"), tmp_path / "llama")
    (directory / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ModelLoadError, match="cannot be loaded"):
        load(directory)
    (directory / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="cannot be loaded"):
        load(directory)


def test_a_checkpoint_that_lacks_a_matrix_is_refused(tiny_dir: TinyDir, tmp_path: Path, load: Load) -> None:
    """transformers would draw it at random and only warn."""
    directory = shutil.copytree(tiny_dir("llama"), tmp_path / "llama")
    weights = load_file(directory / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"lacks weights: model\.layers\.1\.mlp\.up_proj\.weight"):
        load(directory)


def test_cuda_without_a_device_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelLoadError, match="No CUDA device"):
        load_model(ModelConfig(cache_dir=tmp_path, device="cuda"), print)
