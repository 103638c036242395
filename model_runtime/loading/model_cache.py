"""Converted models in the cache directory: converted once, verified at every start, rebuilt when damaged."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.checkpoint import progress_on_terminals_only
from model_runtime.loading.fingerprint import checkpoint_key
from model_runtime.loading.gguf.conversion import FORMAT_VERSION, SOURCE_FILE, convert_gguf
from model_runtime.loading.progress import shown, size_text
from model_runtime.loading.sealed_directory import (
    broken_because,
    budget_bytes,
    build,
    is_ours,
    keep_within,
    mark_used,
    only_one,
    set_aside,
    sweep,
)
from model_runtime.weights.build import build_dequantised
from model_runtime.weights.kept.nf4_file import Nf4File, nf4_file_bytes, write_nf4
from model_runtime.weights.streamed import StreamedCheckpoint

Say = Callable[[str], None]
MODELS_SHARE = 0.2  # of the disk space that is free or theirs
MOST_MODELS_BYTES = 64 * 1024**3
# Quantising takes 31 to 40 ns of processor time a weight more than reading what is kept.
LEAST_KEPT_WEIGHTS = 200_000_000
_NF4_VERSION = 1
_EMBEDDED_VERSION = 1  # its bytes have not changed since
_KEPT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


@dataclass(frozen=True, slots=True)
class Source:
    """The GGUF types of a converted file's matrices, the name of their mixture if it has one ("Q4_K_M"), and notes
    about it. `has_blocks`: torch's kernels can run its model on 4-bit blocks as they are."""

    matrix_types: tuple[str, ...]
    has_blocks: bool
    notes: tuple[str, ...]
    mix: str | None = None

    @property
    def bits_name(self) -> str:
        """ "Q4_K_M", "Q4_1", "Q5_0/Q8_0"."""
        return self.mix or "/".join(self.matrix_types)


def converted_gguf(gguf: Callable[[], Path], key: str, cache_dir: Path, say: Say, *, embedded: bool = False) -> Path:
    """The directory that `convert_gguf` filled. `gguf` is called only if the file must be converted. The embedded model
    is `embedded`: everything that was read with it stays valid as long as its directory has the same bytes."""

    def fill(fresh: Path) -> None:
        path = gguf()
        say(f"Converting {path.name} (once).")
        convert_gguf(path, fresh, say, splits_as_stated=not embedded)
        if not embedded:
            _drop_older(cache_dir / "models", key)

    version = _EMBEDDED_VERSION if embedded else FORMAT_VERSION
    return _kept(cache_dir / "models" / f"{key}-v{version}", fill, say)


def _drop_older(directory: Path, key: str) -> None:
    """Deletes what earlier versions made of the file, which nothing reads any more."""
    for version in range(1, FORMAT_VERSION):
        for older in (directory / f"{key}-v{version}", directory / f"{key}-v{version}-float16"):
            if is_ours(older):
                shutil.rmtree(older, ignore_errors=True)


def half_checkpoint(converted: Path, say: Say) -> Path:
    """A float16 checkpoint with the weights of a converted GGUF, because transformers does not support bitsandbytes on
    a GGUF. float16 keeps three bits more of a weight than bfloat16; NF4 rounds far more coarsely than either."""

    def fill(fresh: Path) -> None:
        say("De-quantising the model to a float16 checkpoint for bitsandbytes (once).")
        with progress_on_terminals_only():
            build_dequantised(converted, torch.float16, "cpu").save_pretrained(fresh)
        for name in _KEPT_FILES:
            if (converted / name).exists():
                shutil.copyfile(converted / name, fresh / name)

    return _kept(converted.with_name(f"{converted.name}-float16"), fill, say)


def has_half_checkpoint(key: str, cache_dir: Path) -> bool:
    """Whether `half_checkpoint` was made of the file with this key."""
    return (cache_dir / "models" / f"{key}-v{FORMAT_VERSION}-float16").exists()


def read_source(converted: Path) -> Source:
    """What `convert_gguf` recorded about the file."""
    source = json.loads((converted / SOURCE_FILE).read_text(encoding="utf-8"))
    return Source(tuple(source["matrix_types"]), bool(source["has_blocks"]), tuple(source["notes"]), source.get("mix"))


def kept_nf4(directory: Path, checkpoint: StreamedCheckpoint, cache_dir: Path, say: Say) -> Nf4File | None:
    """The quantised matrices of `directory`'s checkpoint, made once. None for a model that is quantised faster than it
    is worth a file, where the cache has no room, and where it cannot be written."""
    matrices = checkpoint.matrices()
    if sum(math.prod(one.shape) for one in matrices.values()) < LEAST_KEPT_WEIGHTS:
        return None
    kept = cache_dir / "models" / f"{checkpoint_key(directory)}-nf4-v{_NF4_VERSION}"
    size_bytes = nf4_file_bytes(matrices)

    def fill(fresh: Path) -> None:
        with shown("Quantising to NF4 (once)", size_bytes, say) as progress:
            write_nf4(matrices, fresh, lambda done, _: progress(done), checkpoint.let_go)

    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        room_bytes = budget_bytes(kept.parent, MODELS_SHARE, MOST_MODELS_BYTES)
        if size_bytes > room_bytes and not kept.exists():
            say(
                f"The quantised weights take {size_text(size_bytes)} and the cache may have {size_text(room_bytes)}: "
                "they are not kept, and are made again at every start."
            )
            return None
        return Nf4File(_made(kept, fill, say))
    except OSError as error:
        say(
            f"The quantised weights cannot be kept in {kept.parent} ({error.strerror or error}): they are made again "
            "at every start."
        )
        return None


def _kept(directory: Path, fill: Callable[[Path], None], say: Say) -> Path:
    """`_made`. Raises `ModelLoadError` where the cache cannot be used."""
    try:
        return _made(directory, fill, say)
    except OSError as error:
        if error.filename is None and error.strerror is None:
            raise  # not from the file system: transformers raises OSError for what it cannot read
        raise ModelLoadError(
            f"The model cannot be cached in {directory.parent}: {error.strerror or error}. Free some space there, or "
            "set another cache directory with XDG_CACHE_HOME."
        ) from error


def _made(directory: Path, fill: Callable[[Path], None], say: Say) -> Path:
    """The directory with what `fill` wrote, now or earlier; built again if it is damaged."""
    if broken_because(directory) is None:
        mark_used(directory)
        return directory
    lock = directory.parent / ".lock"
    with only_one(lock, lambda: say("Another process is preparing the model; waiting for it.")):
        reason = broken_because(directory)
        if reason is None:
            return directory
        if directory.exists():
            say(f"The model in the cache is damaged ({reason}); building it again.")
            if not is_ours(directory):
                say(f"The directory also contains files of other programs and is kept as {set_aside(directory)}.")
        sweep(directory.parent)
        build(directory, fill)
        room_bytes = budget_bytes(directory.parent, MODELS_SHARE, MOST_MODELS_BYTES)
        for gone in keep_within(directory.parent, room_bytes, directory):
            say(f"Deleted {gone.path.name} ({size_text(gone.size_bytes)}) from the cache, unused for longest.")
    return directory
