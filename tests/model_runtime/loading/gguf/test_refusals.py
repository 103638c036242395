"""Files that state or contain what Keepwarm does not compute: refused by name, before anything is converted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.gguf import conversion
from model_runtime.loading.gguf.conversion import convert_gguf
from tests.model_runtime.loading.gguf.cases import CASES
from tests.model_runtime.tiny_gguf import Tensors, Value, write_file

_LLAMA = CASES["llama"]


def refusal(
    path: Path,
    keys: Mapping[str, Value] | None = None,
    tensors: Tensors | None = None,
    case_name: str = "llama",
    without: str = "",
) -> str:
    """The sentence that refuses a tiny file with these things added or left out; nothing is written."""
    case = CASES[case_name]
    model = case.model()
    contents = {name: rows for name, rows in case.all_tensors(model).items() if name != without}
    case.write(path, model, keys={**case.all_keys(model), **(keys or {})}, tensors={**contents, **(tensors or {})})
    directory = path.parent / "converted"
    directory.mkdir()
    with pytest.raises(ModelLoadError) as error:
        convert_gguf(path, directory)
    assert not list(directory.iterdir())
    return str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.logit_scale", 0.5),
        ("llama.attention.scale", 0.5),
        ("llama.attn_logit_softcapping", 50.0),
        ("llama.final_logit_softcapping", 30.0),
        ("llama.attention.clamp_kqv", 8.0),
        ("llama.attention.causal", False),
        ("llama.attention.max_alibi_bias", 8.0),
        ("llama.attention.value_length", 8),
        ("llama.attention.head_count_kv", [2, 1]),
        ("llama.feed_forward_length", [96, 64]),
        ("llama.rope.dimension_count", 8),
        ("llama.rope.scaling.type", "longrope"),
        ("llama.rope.scaling.attn_factor", 1.5),
        ("llama.rope.scaling.alpha", 1000.0),
        ("llama.something_new", 1),
        ("general.type", "adapter"),
        ("general.quantization_version", 1),
        ("general.something_new", 1),
        ("adapter.type", "lora"),
        ("somebody.elses", "entry"),
        ("tokenizer.ggml.model", "t5"),
        ("tokenizer.ggml.pre", "strange-splits"),
        ("tokenizer.ggml.remove_extra_whitespaces", True),
        ("tokenizer.ggml.add_sep_token", True),
        ("tokenizer.ggml.token_type_count", 2),
        ("tokenizer.ggml.precompiled_charsmap", [1, 2, 3]),
        ("tokenizer.ggml.something_new", 1),
    ],
)
def test_a_key_is_refused_by_name(key: str, value: Value, tmp_path: Path) -> None:
    assert key in refusal(tmp_path / "model.gguf", {key: value})


@pytest.mark.parametrize("value", [0.25, 0.0])
def test_a_key_that_says_what_is_so_anyway_is_fine(value: float, tmp_path: Path) -> None:
    model = _LLAMA.model()
    keys = {**_LLAMA.all_keys(model), "llama.attention.scale": value, "llama.attention.causal": True}
    convert_gguf(_LLAMA.write(tmp_path / "model.gguf", model, keys=keys), tmp_path)


@pytest.mark.parametrize(
    ("case", "tensor", "shape"),
    [
        ("llama", "blk.0.attn_q_norm.weight", (16,)),
        ("llama", "blk.0.ffn_gate_inp.weight", (4, 64)),
        ("llama", "blk.1.attn_sinks.weight", (4,)),
        ("llama", "output.bias", (512,)),
        ("llama", "strange", (4,)),
        ("mistral", "blk.0.attn_q.bias", (64,)),
        ("qwen2", "blk.0.attn_output.bias", (64,)),
        ("qwen3", "blk.0.attn_qkv.weight", (64, 64)),
        ("gemma3", "blk.0.attn_k.bias", (32,)),
        ("gpt2", "rope_freqs.weight", (8,)),
    ],
)
def test_a_tensor_without_a_place_is_refused_by_name(
    case: str, tensor: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    assert tensor in refusal(tmp_path / "model.gguf", tensors={tensor: np.ones(shape)}, case_name=case)


def test_a_missing_tensor_is_refused_by_name(tmp_path: Path) -> None:
    sentence = refusal(tmp_path / "model.gguf", case_name="qwen2", without="blk.1.attn_k.bias")
    assert sentence == "The file has no tensor for model.layers.1.self_attn.k_proj.bias."


@pytest.mark.parametrize("factors", [np.linspace(1, 3, 8), np.zeros(8), np.ones(5) * 2])
def test_frequencies_that_are_not_those_of_llama_3_are_refused(factors: np.ndarray, tmp_path: Path) -> None:
    assert "rope_freqs.weight" in refusal(tmp_path / "model.gguf", tensors={"rope_freqs.weight": factors})


def test_frequencies_of_one_and_of_old_converters_change_nothing(tmp_path: Path) -> None:
    model = _LLAMA.model()
    plain, same = tmp_path / "plain", tmp_path / "same"
    for directory, more in ((plain, {}), (same, {"rope_freqs.weight": np.ones(8), "blk.0.attn_rot_embd": np.ones(8)})):
        directory.mkdir()
        path = _LLAMA.write(tmp_path / f"{directory.name}.gguf", model, tensors={**_LLAMA.all_tensors(model), **more})
        convert_gguf(path, directory)
    assert (plain / "config.json").read_bytes() == (same / "config.json").read_bytes()


@pytest.mark.parametrize("architecture", ["mamba", "lfm2", "gemma4", "gpt-oss", "bert", "made-up"])
def test_another_architecture_is_refused_by_name(architecture: str, tmp_path: Path) -> None:
    model = _LLAMA.model()
    keys = {key.replace("llama.", f"{architecture}."): value for key, value in _LLAMA.all_keys(model).items()}
    path = write_file(tmp_path / "model.gguf", architecture, keys, _LLAMA.all_tensors(model))
    with pytest.raises(ModelLoadError, match=f"does not read GGUF files of the architecture '{architecture}'"):
        convert_gguf(path, tmp_path)


@pytest.mark.parametrize("part", [1, 2])
@pytest.mark.parametrize("says_so", ["keys", "name"])
def test_a_part_of_a_model_is_refused_as_such(part: int, says_so: str, tmp_path: Path) -> None:
    model = _LLAMA.model()
    names = sorted(_LLAMA.all_tensors(model))
    half = {name: _LLAMA.all_tensors(model)[name] for name in (names[:10] if part == 1 else names[10:])}
    keys: dict[str, Value] = _LLAMA.all_keys(model) if part == 1 else {}
    if says_so == "keys":
        keys |= {"split.no": part - 1, "split.count": 2, "split.tensors.count": len(names)}
    name = f"model-0000{part}-of-00002.gguf" if says_so == "name" else "renamed.gguf"
    with pytest.raises(ModelLoadError, match=f"{name} is one part of 2 of a model"):
        convert_gguf(write_file(tmp_path / name, "llama", keys, half), tmp_path)


def test_a_family_that_cannot_be_run_is_refused_from_the_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table of architectures is not what decides whether one can be run."""
    settings_of = conversion.settings_of
    monkeypatch.setattr(conversion, "settings_of", lambda m: {**settings_of(m), "model_type": "diffllama"})
    sentence = refusal(tmp_path / "model.gguf")
    assert sentence.startswith(
        "model.gguf (a diffllama model) cannot be run: each of its layers computes two attentions"
    )
