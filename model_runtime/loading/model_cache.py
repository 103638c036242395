"""Converted models in the cache directory: each is converted once, checked at every start, rebuilt when damaged."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.checkpoint import progress_on_terminals_only
from model_runtime.loading.gguf import FORMAT_VERSION, SOURCE_FILE, convert_gguf
from model_runtime.loading.sealed_directory import broken_because, build, is_ours, only_one, set_aside, sweep
from model_runtime.weights.build import build_dequantised

Say = Callable[[str], None]
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


@dataclass(frozen=True, slots=True)
class Source:
    """Of which file types a converted GGUF's matrices are, and what is to be said about it."""

    matrix_types: tuple[str, ...]
    has_blocks: bool
    notes: tuple[str, ...]


def gguf_key(path: Path) -> str:
    """A name for a user's file in the cache: another path, size or time is another file (hashing it all takes long)."""
    status = path.stat()
    text = f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
    return f"{path.stem[:60]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def converted_gguf(gguf: Callable[[], Path], key: str, cache_dir: Path, say: Say) -> Path:
    """The directory `convert_gguf` filled. `gguf` is asked for the file only when it has to be converted."""

    def fill(fresh: Path) -> None:
        path = gguf()
        say(f"Converting {path.name} (once).")
        convert_gguf(path, fresh)

    return _kept(cache_dir / "models" / f"{key}-v{FORMAT_VERSION}", fill, say)


def half_checkpoint(converted: Path, say: Say) -> Path:
    """A float16 checkpoint with the numbers of a converted GGUF: transformers refuses a GGUF and bitsandbytes at once.
    float16 keeps three bits more of a weight than bfloat16; NF4 rounds far coarser than either."""

    def fill(fresh: Path) -> None:
        say("De-quantising the model to a float16 checkpoint for bitsandbytes (once).")
        with progress_on_terminals_only():
            build_dequantised(converted, torch.float16, "cpu").save_pretrained(fresh)
        for name in _TOKENIZER_FILES:
            if (converted / name).exists():
                shutil.copyfile(converted / name, fresh / name)

    return _kept(converted.with_name(f"{converted.name}-float16"), fill, say)


def read_source(converted: Path) -> Source:
    """What `convert_gguf` noted."""
    source = json.loads((converted / SOURCE_FILE).read_text(encoding="utf-8"))
    return Source(tuple(source["matrix_types"]), bool(source["has_blocks"]), tuple(source["notes"]))


def _kept(directory: Path, fill: Callable[[Path], None], say: Say) -> Path:
    if broken_because(directory) is None:
        return directory
    try:
        with only_one(directory.parent / ".lock", lambda: say("Another start is preparing the model; waiting for it.")):
            reason = broken_because(directory)
            if reason is None:
                return directory
            if directory.exists():
                say(f"The model in the cache is damaged ({reason}); it is built again.")
                if not is_ours(directory):
                    say(f"What is there was not all made by Keepwarm, and is kept as {set_aside(directory)}.")
            sweep(directory.parent)
            build(directory, fill)
    except OSError as error:
        if error.filename is None and error.strerror is None:
            raise  # not the file system's: transformers raises OSError for what it cannot read
        raise ModelLoadError(
            f"The model cannot be kept in {directory.parent}: {error.strerror or error}. Free some room there, or name "
            "another cache directory with XDG_CACHE_HOME."
        ) from error
    return directory
