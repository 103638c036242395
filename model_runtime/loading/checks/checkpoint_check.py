"""Checks that a checkpoint directory can be what its config says, before memory is allocated for it.

safetensors checks its own header (sizes, offsets, 100 MB at most, JSON nested at most 128 deep). It cannot know whether
the config belongs to the tensors: transformers allocates every weight that a config describes, and initialises those
randomly that no file contains.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from model_runtime.architecture.config_check import check_config
from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.checks.config_file import described_model, read_model_config
from model_runtime.loading.checks.format_check import check_plain
from model_runtime.loading.checks.json_file import read_config
from model_runtime.weights.checkpoint_formats.stored_format import stored_format

INDEX_FILE = "model.safetensors.index.json"
PICKLED = frozenset({".bin", ".pt", ".pth", ".ckpt"})
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|layer|block)\.(\d{1,6})\.")
_TIED = 2  # an embedding that is also the head may be counted twice
_SLACK_WEIGHTS = 1 << 20
_LEAST_BITS = 1  # of a weight in any quantised checkpoint


def check_checkpoint(directory: Path) -> None:
    """Raises `ModelLoadError`, or what transformers raises for a config that it does not know."""
    config_json = read_config(directory / "config.json")
    if stored_format(config_json) is None:
        check_plain(directory.name, tensor_dtypes(directory), {path.name for path in directory.iterdir()}, config_json)
    weights, size_bytes, layers, files = 0, 0, set[int](), dict[str, Path]()
    for path in weight_files(directory):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - it is not a mapping
                    weights += math.prod(file.get_slice(name).get_shape())
                    layers |= {int(match.group(1)) for match in _LAYER.finditer(name)}
                    _refuse_two_values(directory, name, files.setdefault(name, path), path)
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelLoadError(f"{directory.name} cannot be loaded: {path.name} is damaged ({error}).") from error
        size_bytes += path.stat().st_size
    config = read_model_config(directory)
    check_config(config, directory.name)
    claimed_layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if isinstance(claimed_layers, int) and claimed_layers > max(layers, default=0) + 1:
        raise ModelLoadError(
            f"{directory.name} cannot be loaded: its config says it has {claimed_layers:,} layers, its files have "
            f"weights for {max(layers, default=-1) + 1:,}."
        )
    claimed = sum(parameter.numel() for parameter in described_model(config, directory.name).parameters())
    is_quantised = stored_format(config_json) is not None
    most = size_bytes * 8 // _LEAST_BITS if is_quantised else weights
    if claimed > _TIED * most + _SLACK_WEIGHTS:
        raise ModelLoadError(
            f"{directory.name} cannot be loaded: its config describes a model with {claimed:,} weights, its files "
            f"contain {weights:,}."
        )


def _refuse_two_values(directory: Path, name: str, first: Path, second: Path) -> None:
    """Raises `ModelLoadError` when two files have different values for a tensor: transformers would silently take the
    last one, whatever the index says."""
    if first == second:
        return
    with safe_open(first, framework="pt") as one, safe_open(second, framework="pt") as other:
        values = one.get_tensor(name), other.get_tensor(name)
    kinds = {(value.dtype, value.shape) for value in values}
    if len(kinds) > 1 or not torch.equal(*(value.reshape(-1).view(torch.uint8) for value in values)):
        raise ModelLoadError(
            f"{directory.name} cannot be loaded: {first.name} and {second.name} contain different values for the "
            f"tensor {name}. Download the model again, or remove the file that is not part of it from {INDEX_FILE}."
        )


def tensor_dtypes(directory: Path) -> list[tuple[str, str]]:
    """Name and safetensors dtype ("BF16", "F8_E4M3") of every tensor. Raises `ModelLoadError` for a damaged file."""
    found = []
    for path in weight_files(directory):
        try:
            with safe_open(path, framework="pt") as file:
                found += [(name, str(file.get_slice(name).get_dtype())) for name in file.keys()]  # noqa: SIM118 - no dict
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelLoadError(f"{directory.name} cannot be loaded: {path.name} is damaged ({error}).") from error
    return found


def check_files(directory: Path) -> None:
    """Raises `ModelLoadError` for pipes, devices and the like among a model's files: reading one may never end."""
    for path in sorted(directory.iterdir()):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ModelLoadError(f"{directory.name} cannot be loaded: {path.name} is not a regular file.")


def weight_files(directory: Path) -> list[Path]:
    """The files that transformers will read."""
    whole = directory / "model.safetensors"
    if whole.is_file():
        return [whole]
    try:
        listed = read_config(directory / INDEX_FILE).get("weight_map")
    except FileNotFoundError:
        raise ModelLoadError(_no_weights(directory)) from None
    names = set[str]()
    for name in listed.values() if isinstance(listed, dict) else ():
        if not isinstance(name, str) or not _is_file_in(directory, name):
            raise ModelLoadError(
                f"{directory.name} cannot be loaded: its index names {str(name)[:80]!r}, which does not exist."
            )
        names.add(name)
    if not names:
        raise ModelLoadError(f"{directory.name} cannot be loaded: its index names no files.")
    return [directory / name for name in sorted(names)]


def _is_file_in(directory: Path, name: str) -> bool:
    try:
        return Path(name).name == name and (directory / name).is_file()
    except (OSError, ValueError):  # too long for a file's name, or with a NUL in it
        return False


def _no_weights(directory: Path) -> str:
    pickled = sorted(path.name for path in directory.glob("*") if path.suffix in PICKLED)
    reason = f"{directory.name} cannot be loaded: it has no weights in safetensors format"
    if not pickled:
        return f"{reason} (model.safetensors, or {INDEX_FILE} and its files)."
    return f"{reason}. {how_to_convert(pickled[0])}"


def how_to_convert(file: str) -> str:
    """Sentences about a file that is a Python pickle, for people."""
    return (
        f"{file} is a Python pickle, which can run any program when it is read, so Keepwarm never reads it. If you "
        "trust its source, convert it to safetensors with transformers, in Python: model = AutoModelForCausalLM."
        "from_pretrained(DIRECTORY); model.save_pretrained(NEW); AutoTokenizer.from_pretrained(DIRECTORY)."
        "save_pretrained(NEW). Then name the directory NEW."
    )
