"""Weights on disk at their shipped precision: one safetensors file, some matrices as blocks. It is written and read one
parameter at a time, so that memory never holds more of it than that.

A parameter `x` is stored as `x` (dense), as `x.q4` + `x.scale` + `x.minimum`, as `x.q8` + `x.scale`, or as the bytes of
ggml's other blocks, `x.ggml_Q4_K` and so on. The blocks hold the file's own values and are not packed for a processor,
so that one cache serves any CPU.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from model_runtime.weights.ggml_blocks import GgmlBlocks
from model_runtime.weights.q4_blocks import Q4Blocks, Q8Blocks

WEIGHTS_FILE = "blocks.safetensors"
_GGML = "ggml_"
# In the order of a safetensors file.
_DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I8": torch.int8,
    "U8": torch.uint8,
}
_LENGTH_BYTES = 8

Packable = torch.Tensor | Q4Blocks | Q8Blocks
Stored = Packable | GgmlBlocks


@dataclass(frozen=True, slots=True)
class Unread:
    """A parameter that is read when it is written. `like` has its tensors without their content (device "meta")."""

    like: Stored
    read: Callable[[], Stored]


def save_weights(weights: Mapping[str, Unread], directory: Path) -> None:
    """Writes `blocks.safetensors`, byte for byte as the safetensors library would."""
    flat = {key: tensor for name, unread in weights.items() for key, tensor in _parts(name, unread.like).items()}
    order = sorted(flat, key=lambda key: (list(_DTYPES.values()).index(flat[key].dtype), key))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    places, end = dict[str, int](), 0  # of each tensor, behind the header
    for key in order:
        places[key], start, end = end, end, end + flat[key].nbytes
        dtype = next(name for name, dtype in _DTYPES.items() if dtype == flat[key].dtype)
        header[key] = {"dtype": dtype, "shape": list(flat[key].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    with (directory / WEIGHTS_FILE).open("wb") as file:
        file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
        start = file.tell()
        for name, unread in weights.items():
            _write(file, name, unread, places, start)
        file.truncate(start + end)


def _write(file: BinaryIO, name: str, unread: Unread, places: Mapping[str, int], start: int) -> None:
    announced = _parts(name, unread.like)
    for key, tensor in _parts(name, unread.read()).items():
        like = announced[key]
        if (tensor.shape, tensor.dtype) != (like.shape, like.dtype):
            raise ValueError(f"{key} is not of the announced shape")
        file.seek(start + places[key])
        file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)


class StoredWeights:
    """What `save_weights` wrote. A parameter is a view of the mapped file, which stays mapped, and in memory where it
    was touched, as long as the parameter is alive: keep copies or converted tensors only."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / WEIGHTS_FILE
        with self._path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        self._entries, self._start = header, _LENGTH_BYTES + length
        names = (key.rpartition(".") if self._kind_of(key) else (key, "", "") for key in header)
        self.names = frozenset(name for name, _, kind in names if kind not in ("scale", "minimum"))

    def read(self, name: str) -> Stored:
        """The parameter. Raises `KeyError` for one that is not there."""
        if name in self._entries:
            return self._tensor(name)
        if f"{name}.q4" in self._entries:
            return Q4Blocks(*(self._tensor(f"{name}.{part}") for part in ("q4", "scale", "minimum")))
        if f"{name}.q8" in self._entries:
            return Q8Blocks(self._tensor(f"{name}.q8"), self._tensor(f"{name}.scale"))
        kind = self.ggml_kind(name)
        if kind is None:
            raise KeyError(name)
        return GgmlBlocks(self._tensor(f"{name}.{_GGML}{kind}"), kind)

    def has_blocks(self, name: str) -> bool:
        """Whether the parameter is not stored as numbers."""
        return name not in self._entries

    def ggml_kind(self, name: str) -> str | None:
        """The name in gguf of the parameter's type, if it is kept as the bytes of its blocks."""
        found = (key.removeprefix(f"{name}.{_GGML}") for key in self._entries if key.startswith(f"{name}.{_GGML}"))
        return next(found, None)

    def _kind_of(self, key: str) -> str:
        """The ending that says which part of a parameter a tensor is; "" for a parameter that is one tensor."""
        name, _, kind = key.rpartition(".")
        is_scale = kind in ("scale", "minimum") and (f"{name}.q4" in self._entries or f"{name}.q8" in self._entries)
        return kind if kind in ("q4", "q8") or kind.startswith(_GGML) or is_scale else ""

    def _tensor(self, key: str) -> torch.Tensor:
        entry = self._entries[key]
        shape, (start, _) = tuple(entry["shape"]), entry["data_offsets"]
        dtype = _DTYPES[entry["dtype"]]
        count_bytes = math.prod(shape) * dtype.itemsize
        # Copy on write: torch wants memory that it could write to.
        mapped = np.memmap(self._path, dtype=np.uint8, mode="c", offset=self._start + start, shape=(count_bytes,))
        return torch.from_numpy(mapped).view(dtype).view(shape)


def _parts(name: str, stored: Stored) -> dict[str, torch.Tensor]:
    if isinstance(stored, Q4Blocks):
        return {f"{name}.q4": stored.nibbles, f"{name}.scale": stored.scale, f"{name}.minimum": stored.minimum}
    if isinstance(stored, Q8Blocks):
        return {f"{name}.q8": stored.codes, f"{name}.scale": stored.scale}
    if isinstance(stored, GgmlBlocks):
        return {f"{name}.{_GGML}{stored.kind}": stored.rows}
    return {name: stored}


def dense(stored: Stored) -> torch.Tensor:
    """The weights as numbers: blocks as float32, dense tensors unchanged."""
    return stored if isinstance(stored, torch.Tensor) else stored.dequantise()


def halved(stored: Stored) -> Packable:
    """For kernels that have no use for ggml's other blocks: these as float16, or as float32 if they exceed it."""
    if not isinstance(stored, GgmlBlocks):
        return stored
    numbers = stored.dequantise()
    halves = numbers.to(torch.float16)
    return halves if torch.isfinite(halves).all() else numbers
