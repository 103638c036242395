"""Weights on disk at their shipped precision: one safetensors file, some matrices as blocks. It is written and read one
parameter at a time, so that memory never holds more of it than that.

A parameter `x` is stored as `x` (dense), as `x.q4` + `x.scale` + `x.minimum`, as `x.q8` + `x.scale`, or as the bytes of
ggml's other blocks, `x.ggml_Q4_K` and so on. The blocks hold the file's own values and are not packed for a processor,
so that one cache serves any CPU.
"""

from __future__ import annotations

import json
import math
import mmap
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
_SLICE_BYTES = 1 << 21  # de-quantised at a time

Packable = torch.Tensor | Q4Blocks | Q8Blocks
Stored = Packable | GgmlBlocks


@dataclass(frozen=True, slots=True)
class Unread:
    """A parameter that is read when it is written. `like` has its tensors without their content (device "meta")."""

    like: Stored
    read: Callable[[], Stored]


@dataclass(frozen=True, slots=True)
class Tensors:
    """Tensors that are read together when they are written, by name. `like` has them without their content (device
    "meta")."""

    like: Mapping[str, torch.Tensor]
    read: Callable[[], Mapping[str, torch.Tensor]]


def save_weights(
    weights: Mapping[str, Unread], directory: Path, progress: Callable[[int, int], None] = lambda done, whole: None
) -> None:
    """Writes `blocks.safetensors`. `progress` as in `save_tensors`."""

    def group(name: str, unread: Unread) -> Tensors:
        return Tensors(_parts(name, unread.like), lambda: _parts(name, unread.read()))

    save_tensors({name: group(name, unread) for name, unread in weights.items()}, directory / WEIGHTS_FILE, progress)


def save_tensors(groups: Mapping[str, Tensors], path: Path, progress: Callable[[int, int], None]) -> None:
    """Writes a file byte for byte as the safetensors library would, one group at a time. `progress` is called with the
    bytes that were written so far, and with those of all groups."""
    flat = {key: tensor for group in groups.values() for key, tensor in group.like.items()}
    order = sorted(flat, key=lambda key: (list(_DTYPES.values()).index(flat[key].dtype), key))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    places, end = dict[str, int](), 0  # of each tensor, behind the header
    for key in order:
        places[key], start, end = end, end, end + flat[key].nbytes
        dtype = next(name for name, dtype in _DTYPES.items() if dtype == flat[key].dtype)
        header[key] = {"dtype": dtype, "shape": list(flat[key].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
        start = file.tell()
        done = 0
        for group in groups.values():
            done += _write(file, group, places, start)
            progress(done, end)
        file.truncate(start + end)


def _write(file: BinaryIO, group: Tensors, places: Mapping[str, int], start: int) -> int:
    for key, tensor in group.read().items():
        like = group.like[key]
        if (tensor.shape, tensor.dtype) != (like.shape, like.dtype):
            raise ValueError(f"{key} is not of the announced shape")
        file.seek(start + places[key])
        file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return sum(tensor.nbytes for tensor in group.like.values())


def weights_file_bytes(directory: Path) -> int:
    """The size of what `save_weights` wrote."""
    return (directory / WEIGHTS_FILE).stat().st_size


class MappedTensors:
    """The tensors of a safetensors file whose header was checked. A tensor is a view of the mapped file, which stays
    mapped as long as the tensor is alive, and is in memory where it was touched until `let_go`."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            header = json.loads(file.read(length))
            # Copy on write: torch wants memory that it could write to.
            self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        header.pop("__metadata__", None)
        self._entries, self._start = header, _LENGTH_BYTES + length

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return len(self._mapped) - self._start

    def shape(self, name: str) -> torch.Size:
        return torch.Size(self._entries[name]["shape"])

    def is_of_numbers(self, name: str) -> bool:
        """Whether the tensor has floating-point numbers of 16 or 32 bits, at least one."""
        dtype = _DTYPES.get(self._entries[name]["dtype"])
        return dtype is not None and dtype.is_floating_point and 0 not in self._entries[name]["shape"]

    def tensor(self, name: str) -> torch.Tensor:
        """Raises `KeyError` for one that is not there."""
        entry = self._entries[name]
        shape, (start, _) = tuple(entry["shape"]), entry["data_offsets"]
        dtype = _DTYPES[entry["dtype"]]
        count_bytes = math.prod(shape) * dtype.itemsize
        mapped = np.frombuffer(self._mapped, dtype=np.uint8, count=count_bytes, offset=self._start + start)
        return torch.from_numpy(mapped).view(dtype).view(shape)

    def let_go(self) -> None:
        """Takes what was read of the file out of this process's memory. Tensors stay valid: they are read again where
        they are used again. Any thread."""
        self._mapped.madvise(mmap.MADV_DONTNEED)


class StoredWeights:
    """What `save_weights` wrote. Its parameters are views of the mapped file (`MappedTensors`): keep copies or
    converted tensors only. `progress` is called with the number of bytes that were read so far."""

    def __init__(self, directory: Path, progress: Callable[[int], None] = lambda _: None) -> None:
        self._file = MappedTensors(directory / WEIGHTS_FILE)
        self._progress, self._read_bytes = progress, 0
        self._entries = self._file.names
        names = (key.rpartition(".") if self._kind_of(key) else (key, "", "") for key in self._entries)
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

    def let_go(self) -> None:
        """See `MappedTensors`."""
        self._file.let_go()

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
        tensor = self._file.tensor(key)
        self._read_bytes += tensor.nbytes
        self._progress(self._read_bytes)
        return tensor


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


def numbers_in(stored: Stored, dtype: torch.dtype, after_slice: Callable[[], None] = lambda: None) -> torch.Tensor:
    """The weights as numbers of `dtype`, which own their memory. Blocks are de-quantised a few rows at a time, so that
    their float32 numbers are never all in memory beside the result; `after_slice` is called whenever some are done."""
    first = next(iter(_parts("", stored).values()))
    if first.ndim < 2:
        return dense(stored).to(dtype, copy=True)
    rows = math.prod(first.shape[:-1])
    step = max(1, _SLICE_BYTES // (first.shape[-1] * first.itemsize))
    numbers: torch.Tensor | None = None
    for start in range(0, rows, step):
        part = dense(rows_of(stored, start, start + step))
        numbers = part.new_empty(rows, part.shape[-1], dtype=dtype) if numbers is None else numbers
        numbers[start : start + step] = part
        after_slice()
    assert numbers is not None
    return numbers.view(*first.shape[:-1], -1)


def rows_of(stored: Stored, start: int, end: int) -> Stored:
    """Rows `start..end`, of a stack of matrices as of one."""
    if isinstance(stored, Q4Blocks):
        return Q4Blocks(stored.nibbles[start:end], stored.scale[start:end], stored.minimum[start:end])
    if isinstance(stored, Q8Blocks):
        return Q8Blocks(stored.codes[start:end], stored.scale[start:end])
    if isinstance(stored, GgmlBlocks):
        return GgmlBlocks(stored.rows.flatten(0, -2)[start:end], stored.kind)
    return stored.flatten(0, -2)[start:end]


def halved(stored: Stored) -> Packable:
    """For kernels that have no use for ggml's other blocks: these as float16, or as float32 if they exceed it."""
    if not isinstance(stored, GgmlBlocks):
        return stored
    numbers = stored.dequantise()
    halves = numbers.to(torch.float16)
    return halves if torch.isfinite(halves).all() else numbers
