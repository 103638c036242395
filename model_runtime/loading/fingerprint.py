"""Fingerprints of weights and vocabularies: equal across starts, different when a KV or a ledger would be invalid."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerFast

from model_runtime.architecture.rope import short_rope_tokens
from model_runtime.interface.numerics import line
from model_runtime.loading.checks.gguf_parts import gguf_files, model_name
from model_runtime.loading.sealed_directory import MANIFEST

_SAMPLE_BYTES = 4096
_SAMPLES = 64
# How the classic families place and see tokens, in their config or its `attn_config` (MPT). Left out where they do not
# exist, so that memory saved by other models stays valid.
_CLASSIC = ("alibi", "attention_types", "window_size", "rotary_dim", "num_kv_heads", "clip_qkv", "softmax_scale")
_WEIGHT_SUFFIXES = (".safetensors", ".bin")


def model_fingerprint(directory: Path, config: PretrainedConfig, **numerics: str) -> str:
    """A line (see `numerics.line`) with a checkpoint's weights and RoPE settings as hashes, and `numerics` unchanged
    (quantization, dtype, kernel).

    A sealed directory is identified by its checksums. For others, names, sizes and samples of the weight files are
    hashed: reading everything would take minutes for a large model.
    """
    digest = hashlib.sha256(b"kv1")  # never changes: the format has a version of its own (`segments.FORMAT_VERSION`)
    manifest = directory / MANIFEST
    if manifest.exists():
        digest.update(manifest.read_bytes())
    else:
        for path in sorted(directory.iterdir()):
            if path.suffix in _WEIGHT_SUFFIXES:
                _sample(path, digest)
    text_config = config.get_text_config()
    names = ("rope_parameters", "sliding_window", "layer_types")
    positions = {name: getattr(text_config, name, None) for name in names}
    if short_rope_tokens(text_config) is not None:  # it scales by the ratio of both lengths
        positions["max_position_embeddings"] = getattr(text_config, "max_position_embeddings", None)
    for settings in (text_config, getattr(text_config, "attn_config", None)):
        positions |= {name: value for name in _CLASSIC if (value := getattr(settings, name, None)) is not None}
    rope = hashlib.sha256(json.dumps(positions, sort_keys=True, default=str).encode())
    return line(weights=digest.hexdigest()[:32], rope=rope.hexdigest()[:16], **numerics)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """32 hexadecimal digits for the vocabulary, the tokenization rules and the chat template."""
    digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode("utf-8", "surrogatepass"))
    digest.update(json.dumps(tokenizer.chat_template, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:32]


def gguf_key(path: Path) -> str:
    """A key for a user's file in the cache, from its path, size and time, because hashing all of it takes long. A model
    in several files has one key, whichever of them is named. Raises `ModelLoadError` when one of them is missing."""
    files = gguf_files(path)
    texts = [f"{file.resolve()}\0{file.stat().st_size}\0{file.stat().st_mtime_ns}" for file in files]
    return f"{model_name(path)[:60]}-{hashlib.sha256(chr(0).join(texts).encode()).hexdigest()[:12]}"


def checkpoint_key(directory: Path) -> str:
    """A key in the cache for what is made of a checkpoint: from its manifest if it is sealed, else from paths (a hub's
    name their content), sizes, times and samples of the weight files."""
    digest = hashlib.sha256()
    manifest = directory / MANIFEST
    if manifest.exists():
        digest.update(manifest.read_bytes())
    else:
        for path in sorted(directory.glob("*.safetensors")):
            digest.update(f"{path.resolve()}\0{path.stat().st_mtime_ns}\0".encode())
            _sample(path, digest)
    return f"{directory.resolve().name[:100]}-{digest.hexdigest()[:12]}"


def _sample(path: Path, digest: hashlib._Hash) -> None:
    size_bytes = path.stat().st_size
    digest.update(f"{path.name}\0{size_bytes}\0".encode())
    with path.open("rb") as handle:
        for index in range(_SAMPLES):
            handle.seek(max(0, size_bytes - _SAMPLE_BYTES) * index // (_SAMPLES - 1))
            digest.update(handle.read(_SAMPLE_BYTES))
