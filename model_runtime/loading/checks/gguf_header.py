"""Parses and bounds the header of a GGUF file before any library reads it.

The gguf library trusts the lengths and counts that a file states: a declared array of 2^60 items keeps it busy forever,
one of a billion bytes takes hundreds of gigabytes. Here every length is checked against the remaining bytes, and every
tensor against the file's own layout (llama.cpp's `gguf_init_from_file` has the same rules): unique names, consecutive
offsets, no overlap, nothing outside the file.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from model_runtime.interface.errors import ModelLoadError

MOST_ENTRIES = 65_536
MOST_ARRAY_ITEMS = 2_097_152  # in all arrays together; the largest known model has 439,802 merges
MOST_DIMENSIONS = 4
MOST_NAME_BYTES = 1 << 16  # of keys, tensors, tokens
MOST_WEIGHTS = 1 << 48
_KEPT_NUMBERS = 1024  # of longer arrays only the length is kept
_DEFAULT_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_WEIGHT_TYPES = frozenset(
    kind for kind in GGMLQuantizationType if kind.name not in ("I8", "I16", "I32", "I64", "Q8_1", "Q8_K")
)


class _Broken(Exception):
    """What is wrong, as the end of a sentence."""


@dataclass(frozen=True, slots=True)
class Items:
    """An array: its length, and its items if they are a few numbers."""

    count: int
    numbers: tuple[float, ...] = ()


Value = int | float | bool | str | Items


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of the file. `shape` is in torch's order: outputs first. `offset` counts bytes from the `data_start`
    of its file; `part` is that file's number if a model has several, from 0."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    part: int = 0


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The metadata and tensor list of a file. `data_start` is the place of the first tensor, in bytes. `other_parts`
    are the further files of the model (`gguf_parts`), each with its `data_start`."""

    metadata: dict[str, Value]
    tensors: dict[str, TensorInfo]
    data_start: int
    other_parts: tuple[tuple[Path, int], ...] = ()

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))


def read_gguf_header(path: Path) -> GgufHeader:
    """Reads the header. Raises `ModelLoadError` that says what is wrong with the file."""
    try:
        if path.stat().st_size < 24:
            raise _Broken("it is too short")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Walk(data).header()
    except _Broken as problem:
        raise ModelLoadError(
            f"{path.name} is not a GGUF file, or is incomplete: {problem}. Download it again."
        ) from None
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror or error}.") from error


class _Walk:
    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._place, self._items = data, 0, 0

    def header(self) -> GgufHeader:
        if self._bytes(4) != b"GGUF":
            raise _Broken("it does not start like one")
        version = self._number("I")
        if version not in (2, 3):
            raise _Broken(f"its version is {version}; only versions 2 and 3 in little-endian order are supported")
        tensor_count, entry_count = self._number("Q"), self._number("Q")
        for what, count in (("tensors", tensor_count), ("entries", entry_count)):
            if count > MOST_ENTRIES:
                raise _Broken(f"it claims to have {count:,} {what}")
        metadata: dict[str, Value] = {}
        for _ in range(entry_count):
            key = self._text(MOST_NAME_BYTES)
            if key in metadata:
                raise _Broken(f"its entry {key!r} occurs twice")
            metadata[key] = self._value(self._number("I"))
        alignment = _alignment(metadata)
        parts = metadata.get("split.count")
        is_part = isinstance(parts, int) and parts > 1  # one may have only metadata
        tensors = self._tensors(tensor_count, alignment) if tensor_count or not is_part else {}
        return GgufHeader(metadata, tensors, -(-self._place // alignment) * alignment)

    def _tensors(self, count: int, alignment: int) -> dict[str, TensorInfo]:
        tensors: dict[str, TensorInfo] = {}
        expected_offset = 0
        for _ in range(count):
            tensor = self._tensor()
            if tensor.name in tensors:
                raise _Broken(f"its tensor {tensor.name!r} occurs twice")
            if tensor.offset != expected_offset:
                raise _Broken(f"its tensor {tensor.name!r} is not at the expected offset")
            tensors[tensor.name] = tensor
            end = tensor.offset + tensor_bytes(tensor)
            expected_offset = -(-end // alignment) * alignment
            last_end = end
        if not tensors:
            raise _Broken("it has no tensors")
        start = -(-self._place // alignment) * alignment
        if start + last_end > len(self._data):
            missing = start + last_end - len(self._data)
            raise _Broken(f"{missing:,} bytes of its tensors are missing")
        return tensors

    def _tensor(self) -> TensorInfo:
        name = self._text(MOST_NAME_BYTES)
        dimensions = self._number("I")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise _Broken(f"its tensor {name!r} has {dimensions:,} dimensions")
        sizes = [self._number("Q") for _ in range(dimensions)]
        number = self._number("I")
        if not all(sizes) or math.prod(sizes) > MOST_WEIGHTS:
            raise _Broken(f"its tensor {name!r} has an impossible size")
        if number not in (int(kind) for kind in _WEIGHT_TYPES):
            raise _Broken(f"its tensor {name!r} has an unknown type ({number})")
        kind = GGMLQuantizationType(number)
        if sizes[0] % GGML_QUANT_SIZES[kind][0]:
            raise _Broken(f"rows of its tensor {name!r} are not whole blocks of {kind.name}")
        return TensorInfo(name, tuple(reversed(sizes)), kind, self._number("Q"))

    def _value(self, kind: int) -> Value:
        if kind == _STRING:
            return self._text(len(self._data))
        if kind == _ARRAY:
            return self._array()
        return self._scalar(kind)

    def _array(self) -> Items:
        kind, count = self._number("I"), self._number("Q")
        self._items += count
        if self._items > MOST_ARRAY_ITEMS:
            raise _Broken(f"its lists claim to have more than {MOST_ARRAY_ITEMS:,} items")
        if kind == _STRING:
            for _ in range(count):
                self._text(MOST_NAME_BYTES)
            return Items(count)
        if kind not in _SCALARS:
            raise _Broken(f"one of its lists has an unknown type ({kind})")
        if count > _KEPT_NUMBERS:
            self._skip(count * struct.calcsize(_SCALARS[kind]))
            return Items(count)
        return Items(count, tuple(self._scalar(kind) for _ in range(count)))

    def _scalar(self, kind: int) -> int | float | bool:
        if kind not in _SCALARS:
            raise _Broken(f"one of its entries has an unknown type ({kind})")
        value: int | float | bool = struct.unpack(f"<{_SCALARS[kind]}", self._bytes(struct.calcsize(_SCALARS[kind])))[0]
        return value

    def _number(self, code: str) -> int:
        value: int = struct.unpack(f"<{code}", self._bytes(struct.calcsize(code)))[0]
        return value

    def _text(self, most_bytes: int) -> str:
        length = self._number("Q")
        if length > most_bytes:
            raise _Broken(f"one of its names claims to have {length:,} bytes")
        try:
            return self._bytes(length).decode("utf-8")
        except UnicodeDecodeError:
            raise _Broken("one of its texts is not UTF-8") from None

    def _bytes(self, count: int) -> bytes:
        start = self._place
        self._skip(count)
        return self._data[start : start + count]

    def _skip(self, count: int) -> None:
        if count > len(self._data) - self._place:
            raise _Broken("it ends in the middle of its header")
        self._place += count


def _alignment(metadata: dict[str, Value]) -> int:
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise _Broken("its alignment is not a power of two")
    return alignment


def tensor_bytes(tensor: TensorInfo) -> int:
    """Its size in the file."""
    block, block_bytes = GGML_QUANT_SIZES[tensor.kind]
    return math.prod(tensor.shape) // int(block) * int(block_bytes)
