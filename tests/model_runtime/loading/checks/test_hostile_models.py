"""Model files that lie about themselves: each is refused with a sentence before any kernel runs, or before memory is
taken that it does not have."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from safetensors.torch import load_file, save_file

from model_runtime.architecture.shape_check import check_decoder_shapes
from model_runtime.engine.engine import LocalEngine
from model_runtime.forward.native_forward import NativeForward, runs_natively
from model_runtime.forward.transformers_forward import Feed
from model_runtime.interface.config import EngineConfig, ModelConfig, Quantization
from model_runtime.interface.errors import ModelLoadError
from model_runtime.kv.geometry import KVGeometry, LayerShape
from model_runtime.kv.slab import KVSlab
from model_runtime.loading.checks.gguf_header import read_gguf_header
from model_runtime.loading.loaded import LoadedModel
from model_runtime.loading.loading import load_model
from model_runtime.weights.kernel_choice import kernel_plan
from model_runtime.weights.native_matrix import NativeLinear, NativeMatrix
from tests.conftest import TinyDir
from tests.model_runtime.tiny_gguf import write_gguf
from tests.model_runtime.tiny_models import tiny_wide_llama

Load = Callable[[Path, Quantization], LoadedModel]


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory, torch_threads: int) -> Path:
    directory = tmp_path_factory.mktemp("cache")
    kernel_plan(directory, print)
    return directory


@pytest.fixture
def load(cache_dir: Path) -> Load:
    def load(model: Path, quantization: Quantization) -> LoadedModel:
        return load_model(ModelConfig(str(model), quantization, cache_dir=cache_dir, device="cpu"), lambda _: None)

    return load


@pytest.fixture(scope="module")
def intact_gguf(tiny_dir: TinyDir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "intact.gguf"
    return write_gguf(tiny_dir("llama"), path, GGMLQuantizationType.Q4_1)


@pytest.fixture
def gguf_file(intact_gguf: Path, tmp_path: Path) -> Path:
    return Path(shutil.copyfile(intact_gguf, tmp_path / "hostile.gguf"))


@pytest.fixture
def checkpoint(tiny_dir: TinyDir, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_dir("llama"), tmp_path / "hostile")


def set_entry(path: Path, key: str, value: float) -> None:
    GGUFReader(path, "r+").fields[key].parts[-1][0] = value


def set_dims(path: Path, tensor: str, place: int, value: int) -> None:
    found = next(t for t in GGUFReader(path, "r+").tensors if t.name == tensor)
    found.field.parts[3][place] = value


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        # The embedded file with feed_forward_length 1536 -> 32 ended the process: free(): invalid next size
        (
            "llama.feed_forward_length",
            32,
            r"ffn_gate\.weight has the shape \[128, 64\], but its metadata .* \[32, 64\]",
        ),
        ("llama.feed_forward_length", 96, "has the shape"),
        ("llama.feed_forward_length", 2**31, "feed_forward_length is 2,147,483,648, but no tensor in it is wider"),
        ("llama.embedding_length", 32, "rope.dimension_count is 16, but its heads are 8 wide"),
        ("llama.embedding_length", 2**31 - 1, "embedding_length is"),
        ("llama.block_count", 2, "it says it has 2 layers, but it has tensors for 3"),
        ("llama.block_count", 4, "it says it has 4 layers, but it has tensors for 3"),
        ("llama.block_count", 2**32 - 1, "it says it has 4,294,967,295 layers"),
        ("llama.attention.head_count", 0, "0 heads cannot share 2 key heads"),
        ("llama.attention.head_count", 3, "3 heads cannot share 2 key heads"),
        ("llama.attention.head_count", 8, "rope.dimension_count is 16, but its heads are 8 wide"),
        ("llama.attention.head_count_kv", 0, "num_key_value_heads is 0"),
        ("llama.attention.head_count_kv", 4, "has the shape"),
        ("llama.attention.head_count_kv", 3, "4 heads cannot share 3"),
        ("llama.context_length", 0, "it says its context is 0 tokens long"),
        ("llama.context_length", 2**32 - 1, "it says its context is 4,294,967,295 tokens long"),
        ("llama.vocab_size", 2**32 - 1, "vocab_size is 4,294,967,295"),
        ("llama.attention.layer_norm_rms_epsilon", float("nan"), "layer_norm_rms_epsilon is nan"),
        ("llama.rope.freq_base", float("inf"), "freq_base is inf"),
        ("tokenizer.ggml.eos_token_id", 512, "eos_token_id is 512, which is not one of its tokens"),
    ],
)
def test_metadata_that_cannot_be_correct(key: str, value: float, sentence: str, gguf_file: Path, load: Load) -> None:
    set_entry(gguf_file, key, value)
    with pytest.raises(ModelLoadError, match=sentence):
        load(gguf_file, "shipped")


def test_a_shape_that_is_turned_or_another_is_refused(gguf_file: Path, load: Load) -> None:
    set_dims(gguf_file, "blk.1.ffn_up.weight", 0, 128)
    set_dims(gguf_file, "blk.1.ffn_up.weight", 1, 64)
    with pytest.raises(ModelLoadError, match=r"blk\.1\.ffn_up\.weight has the shape \[64, 128\]"):
        load(gguf_file, "shipped")


@pytest.mark.parametrize("place", range(0, 24, 4))
def test_hostile_counts_in_the_first_bytes(place: int, gguf_file: Path, load: Load) -> None:
    data = bytearray(gguf_file.read_bytes())
    data[place : place + 4] = b"\xff\xff\xff\x7f"
    gguf_file.write_bytes(data)
    with pytest.raises(ModelLoadError, match="is not a GGUF file, or is incomplete"):
        load(gguf_file, "shipped")


def test_a_list_that_claims_more_items_than_the_file_has_bytes(tmp_path: Path) -> None:
    def file(kind: int, count: int) -> Path:
        path = tmp_path / "list.gguf"
        key = b"tokenizer.ggml.tokens"
        entry = struct.pack("<Q", len(key)) + key + struct.pack("<IIQ", 9, kind, count)
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry + b"\0" * 64)
        return path

    for kind, count in ((8, 2**60), (0, 2**63), (10, 100), (9, 1), (8, 2_000_000), (77, 1)):
        with pytest.raises(ModelLoadError, match="is not a GGUF file, or is incomplete: "):
            read_gguf_header(file(kind, count))


@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [(-1, 64, "not at the expected offset"), (-1, 2**50, "not at the expected offset"), (2, 9, "dimensions")],
)
def test_a_tensor_that_lies_elsewhere_overlaps_or_has_no_size(
    place: int, value: int, sentence: str, gguf_file: Path, load: Load
) -> None:
    GGUFReader(gguf_file, "r+").tensors[2].field.parts[place][0] = value
    with pytest.raises(ModelLoadError, match=sentence):
        load(gguf_file, "shipped")


def test_a_tensor_that_is_there_twice_is_refused(gguf_file: Path, load: Load) -> None:
    data = gguf_file.read_bytes()
    gguf_file.write_bytes(data.replace(b"blk.1.attn_q.weight", b"blk.2.attn_q.weight"))
    with pytest.raises(ModelLoadError, match="occurs twice"):
        load(gguf_file, "shipped")


def test_one_part_of_a_split_model_says_so(gguf_file: Path, load: Load) -> None:
    data = gguf_file.read_bytes()
    key = b"split.count"
    entry = struct.pack("<Q", len(key)) + key + struct.pack("<IH", 2, 2)
    (entries,) = struct.unpack("<Q", data[16:24])
    padding = b"\0" * (-(len(entry)) % 32)
    start = GGUFReader(gguf_file).data_offset
    gguf_file.write_bytes(data[:16] + struct.pack("<Q", entries + 1) + entry + data[24:start] + padding + data[start:])
    with pytest.raises(ModelLoadError, match="is one part of 2 of a model"):
        load(gguf_file, "shipped")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, and must be a"),
        ({"num_hidden_layers": 40}, "its config says it has 40 layers, its files have weights for 3"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"vocab_size": 2**38}, "its config describes a model with"),
        ({"intermediate_size": 2**30}, "its config describes a model with"),
        ({"intermediate_size": 32}, "have other shapes"),
        ({"num_key_value_heads": 3}, "4 heads cannot share 3"),
        ({"num_key_value_heads": -2}, "num_key_value_heads is -2"),
        ({"num_attention_heads": 0}, "hostile cannot be"),
        ({"head_dim": 2**40}, "head_dim is"),
        ({"max_position_embeddings": 2**60}, r"(max_position_embeddings is|its context is) [\d,]+"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": float("inf")}}, "rope_theta is inf"),
    ],
)
def test_a_config_that_does_not_belong_to_the_weights(
    changes: dict[str, object], sentence: str, checkpoint: Path, load: Load
) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelLoadError, match=sentence):
        load(checkpoint, "none")


def test_a_config_nested_without_end_is_a_sentence(checkpoint: Path, load: Load) -> None:
    (checkpoint / "config.json").write_text('{"a":' * 100_000)
    with pytest.raises(ModelLoadError, match="nested too deeply"):
        load(checkpoint, "none")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json", "model.safetensors"])
def test_a_pipe_or_a_device_among_the_files_is_a_sentence(name: str, checkpoint: Path, load: Load) -> None:
    path = checkpoint / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(ModelLoadError, match=f"{name} is not a regular file"):
        load(checkpoint, "none")
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(ModelLoadError, match=f"{name} is not a regular file"):
        load(checkpoint, "none")


def test_a_header_that_claims_more_than_the_file_is_a_sentence(checkpoint: Path, load: Load) -> None:
    path = checkpoint / "model.safetensors"
    data = path.read_bytes()
    for length in (2**63, 2**32, 99_000_000):
        path.write_bytes(struct.pack("<Q", length) + data[8:])
        with pytest.raises(ModelLoadError, match=r"model\.safetensors is damaged"):
            load(checkpoint, "none")


NO_FILES = [
    "../elsewhere.safetensors",
    "/etc/passwd",
    "missing.safetensors",
    7,
    [],
    {},
    None,
    "a\0b",
    "a" * 5000,
    "\ud800",
]


@pytest.mark.parametrize("name", NO_FILES)
def test_an_index_names_files_of_its_own_directory(name: object, checkpoint: Path, load: Load) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint.parent / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": name}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelLoadError, match="its index names"):
        load(checkpoint, "none")


def in_two_files(checkpoint: Path, second: dict[str, torch.Tensor]) -> None:
    """The checkpoint's weights in one file, and `second` in another, which the index gives to the first."""
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    path.unlink()
    save_file(weights, checkpoint / "a.safetensors", {"format": "pt"})
    save_file(second, checkpoint / "b.safetensors", {"format": "pt"})
    named = dict.fromkeys(weights, "a.safetensors") | {"another": "b.safetensors"}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": named}))


@pytest.mark.parametrize(
    "change", [lambda value: value + 1, lambda value: value[:4].clone(), lambda value: value.to(torch.float64)]
)
def test_a_tensor_with_two_values_is_refused(
    change: Callable[[torch.Tensor], torch.Tensor], checkpoint: Path, load: Load
) -> None:
    """transformers would take the last file's, whatever the index says."""
    norm = load_file(checkpoint / "model.safetensors")["model.norm.weight"]
    in_two_files(checkpoint, {"model.norm.weight": change(norm)})
    with pytest.raises(ModelLoadError, match=r"a\.safetensors and b\.safetensors contain different values for the ten"):
        load(checkpoint, "none")


def test_a_tensor_that_is_stored_twice_is_read(checkpoint: Path, load: Load) -> None:
    norm = load_file(checkpoint / "model.safetensors")["model.norm.weight"]
    in_two_files(checkpoint, {"model.norm.weight": norm})
    assert torch.equal(load(checkpoint, "none").model.model.norm.weight.cpu().to(norm.dtype), norm)


@pytest.mark.parametrize("shape", [(-1,), (1, 64, 64), (32, 128)])
def test_a_matrix_of_another_shape_is_not_packed_into_4_bits(
    shape: tuple[int, ...], checkpoint: Path, load: Load
) -> None:
    weights, name = load_file(checkpoint / "model.safetensors"), "model.layers.0.self_attn.q_proj.weight"
    weights[name] = weights[name].reshape(shape)
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"shape"):
        load(checkpoint, "nf4")


def test_pickled_weights_are_never_read(checkpoint: Path, load: Load) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    torch.save(weights, checkpoint / "pytorch_model.bin")
    for named in (checkpoint, checkpoint / "pytorch_model.bin"):
        with pytest.raises(
            ModelLoadError, match=r"pytorch_model\.bin is a Python pickle, which can run any .* convert it"
        ):
            load(named, "none")


def test_code_that_comes_with_a_model_is_never_run(checkpoint: Path, load: Load) -> None:
    path, ran = checkpoint / "config.json", checkpoint / "it_ran"
    config = json.loads(path.read_text()) | {"model_type": "hostile", "auto_map": {"AutoConfig": "own.Own"}}
    path.write_text(json.dumps(config))
    (checkpoint / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: pass\n")
    with pytest.raises(ModelLoadError, match="never runs code from a model's directory"):
        load(checkpoint, "none")
    assert not ran.exists()


def test_more_outputs_than_embeddings_are_refused(checkpoint: Path, load: Load) -> None:
    loaded = load(checkpoint, "none")
    loaded.model.model.embed_tokens = torch.nn.Embedding(100, 64)
    with pytest.raises(ModelLoadError, match="it can generate 512 tokens, but has embeddings for 100"):
        LocalEngine(loaded, EngineConfig(), 512)


WRONG = {
    "a matrix": lambda model: setattr(model.config, "intermediate_size", 160),
    "heads": lambda model: setattr(model.config, "num_key_value_heads", 1),
    "a vocabulary": lambda model: setattr(model.config, "vocab_size", 480),
    "layers": lambda model: setattr(model.config, "num_hidden_layers", 2),
    "a norm": lambda model: setattr(model.model.norm, "weight", torch.nn.Parameter(torch.ones(32))),
    "a head's norm": lambda model: setattr(
        model.model.layers[1].self_attn, "q_norm", torch.nn.RMSNorm(32, elementwise_affine=True)
    ),
    "an embedding": lambda model: model.set_input_embeddings(torch.nn.Embedding(512, 32)),
    "a rope table": lambda model: model.model.rotary_emb.register_buffer("inv_freq", torch.ones(4)),
}


@pytest.mark.parametrize("what", WRONG)
def test_no_kernel_sees_a_model_whose_parts_do_not_fit(what: str, gguf_file: Path, load: Load) -> None:
    model = load(gguf_file, "shipped").model
    assert all(isinstance(layer.mlp.up_proj, NativeLinear) for layer in model.model.layers)
    check_decoder_shapes(model)
    WRONG[what](model)
    with pytest.raises(ModelLoadError, match="cannot be used"):
        check_decoder_shapes(model)


def test_the_kernels_refuse_sizes_that_do_not_fit(tmp_path: Path, load: Load) -> None:
    """Even if all of Python were wrong."""
    path = write_gguf(tiny_wide_llama(tmp_path / "wide"), tmp_path / "wide.gguf", GGMLQuantizationType.Q4_0)
    model = load(path, "shipped").model
    assert runs_natively(model)
    native = NativeForward(model)
    geometry = KVGeometry((LayerShape(2, 32, 32),) * 2, torch.float32, torch.device("cpu"))
    assert native.run([Feed(KVSlab(geometry), [3, 4], 1)]).shape == (1, 512)
    other = KVGeometry((LayerShape(1, 32, 32),) * 2, torch.float32, torch.device("cpu"))
    with pytest.raises(RuntimeError, match="not of this model's shape"):
        native.run([Feed(KVSlab(other), [3, 4], 1)])
    for name in ("intermediate", "hidden", "heads", "kv_heads", "dim", "vocabulary"):
        right = getattr(native.struct, name)
        for wrong in (0, -1, right - 1, 2 * right, 2**31 - 1):
            setattr(native.struct, name, wrong)
            with pytest.raises(RuntimeError, match="sizes of a step"):
                native.run([Feed(KVSlab(geometry), [3, 4], 1)])
        setattr(native.struct, name, right)


def test_a_native_matrix_checks_its_bias_and_its_input(cache_dir: Path) -> None:
    kernels = kernel_plan(cache_dir, print)[0].kernels
    if kernels is None:
        pytest.skip("there is no compiler")
    assert isinstance(kernels, ctypes.CDLL)
    with pytest.raises(ValueError, match="does not belong to 64 outputs"):
        NativeMatrix(torch.ones(64, 32), torch.ones(32), kernels)
    with pytest.raises(ValueError, match="do not fit"):
        NativeMatrix(torch.ones(64, 32), None, kernels).multiply(torch.ones(2, 64))


def test_weights_that_are_no_numbers_are_refused_by_the_probe(checkpoint: Path, load: Load) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 3] = np.nan
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    loaded = load(checkpoint, "none")
    with pytest.raises(ModelLoadError, match="computes no valid numbers"):
        LocalEngine(loaded, EngineConfig(), 512)
