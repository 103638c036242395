"""A segment: a run of KV rows outside its slab, copied out, written to a file, and verified when it is read back.

File: eight bytes of header length, a safetensors header (so that other tools can look inside), the tensors layer by
layer, keys before values. The header is a pure function of the segment's identity and its data's CRC-32. A reader
rebuilds it from what it expects and compares it byte for byte, so a damaged or truncated file and the file of another
conversation or model are refused. CRC-32 finds every single flipped bit at 3 GB/s, while SHA-256 ran at 0.36 GB/s.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import stat
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from model_runtime.interface import protocol
from model_runtime.interface.errors import SegmentGone, SegmentNotSaved, SegmentRefused
from model_runtime.interface.numerics import difference, is_long_rope
from model_runtime.interface.segments import FORMAT_NAME, FORMAT_VERSION, SegmentIdentity
from model_runtime.kv.geometry import KVGeometry
from model_runtime.kv.int8 import (
    SCALE_DTYPE,
    key_groups,
    quantise_keys,
    quantise_values,
    restore_keys,
    restore_values,
)
from model_runtime.kv.mapped_memory import new_memory
from model_runtime.kv.slab import KVSlab

_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int8: "I8"}
_ALIGN_BYTES = 64
Memory = Callable[[int], torch.Tensor]


@dataclass(frozen=True, slots=True)
class KVSegment:
    """Rows in host memory. `data` is flat uint8 and read-only from now on; `is_int8` says how the rows are encoded."""

    identity: SegmentIdentity
    data: torch.Tensor
    is_int8: bool = False

    @property
    def data_bytes(self) -> int:
        return int(self.data.nbytes)


def own_segment(segment: protocol.Segment) -> KVSegment:
    """The same segment with its own type. Raises `TypeError` for a segment of another kind of engine."""
    if not isinstance(segment, KVSegment):
        raise TypeError("this engine's segments come from its stage() and load()")
    return segment


def data_bytes_for(geometry: KVGeometry, tokens: int, is_int8: bool = False) -> int:
    """The size of a segment's rows: `2 * layers * kv_heads * head_dim * itemsize` bytes per token. At 8 bits one byte
    per number, plus the scales."""
    if not is_int8:
        return geometry.bytes_per_token * tokens
    return sum(tensor.count_bytes for tensor in _layout(geometry, tokens, True))


def copy_out(
    slab: KVSlab, geometry: KVGeometry, identity: SegmentIdentity, before: Sequence[int] | None = None
) -> KVSegment:
    """Copies the segment's rows out of the slab. Engine thread. Raises `ValueError` when the slab holds other tokens
    there, or when other tokens than `before` precede them."""
    check_holds(slab, identity, before)
    start, end = identity.start_tokens, identity.end_tokens
    data = new_memory(data_bytes_for(geometry, end - start))
    for tensor, rows in zip(_tensors(slab), _views(data, geometry, end - start), strict=True):
        rows.copy_(tensor[:, start:end])
    return KVSegment(identity, data)


def check_holds(slab: KVSlab, identity: SegmentIdentity, before: Sequence[int] | None) -> None:
    """Raises `ValueError` when the slab holds other tokens in the segment's place, or when other tokens than `before`
    precede them, or when its rows have other rotary frequencies."""
    start, end = identity.start_tokens, identity.end_tokens
    if slab.is_long_rope is not is_long_rope(identity.fingerprint):
        raise ValueError("the slab's rows have other rotary frequencies than this segment's")
    stands_elsewhere = before is not None and slab.token_ids[:start] != list(before)
    if stands_elsewhere or tuple(slab.token_ids[start:end]) != identity.token_ids:
        raise ValueError("the slab does not hold the tokens of this segment")


def take_rope_of(slab: KVSlab, identity: SegmentIdentity) -> None:
    """Before a segment's rows are appended. Raises `ValueError` when the slab holds rows with other rotary
    frequencies."""
    is_long = is_long_rope(identity.fingerprint)
    if slab.length_tokens and slab.is_long_rope is not is_long:
        raise ValueError("a segment must have the rotary frequencies of the rows before it")
    slab.use_rope(is_long)


def at_8_bits(segment: KVSegment, geometry: KVGeometry) -> KVSegment:
    """Copies exact rows to int8. Any thread."""
    tokens = len(segment.identity.token_ids)
    data = new_memory(data_bytes_for(geometry, tokens, True))
    exact, packed = _views(segment.data, geometry, tokens), _views(data, geometry, tokens, True)
    for keys in exact:
        scales, stored = next(packed), next(packed)
        quantise_keys(keys, stored, scales)
        scales, stored = next(packed), next(packed)
        quantise_values(next(exact), stored, scales)
    return KVSegment(segment.identity, data, True)


def exactly(segment: KVSegment, geometry: KVGeometry, memory: Memory) -> KVSegment:
    """The rows in the device's precision, without what int8 rounded away. Any thread."""
    if not segment.is_int8:
        return segment
    tokens = len(segment.identity.token_ids)
    data = memory(data_bytes_for(geometry, tokens))
    exact, packed = _views(data, geometry, tokens), _views(segment.data, geometry, tokens, True)
    for keys in exact:
        scales, stored = next(packed), next(packed)
        restore_keys(stored, scales, keys)
        scales, stored = next(packed), next(packed)
        restore_values(stored, scales, next(exact))
    return KVSegment(segment.identity, data)


def joined(identity: SegmentIdentity, segments: Sequence[KVSegment], geometry: KVGeometry) -> KVSegment:
    """Joins consecutive exact segments into one. Any thread."""
    data = new_memory(data_bytes_for(geometry, len(identity.token_ids)))
    parts = [_views(s.data, geometry, len(s.identity.token_ids)) for s in segments]
    for rows, *pieces in zip(_views(data, geometry, len(identity.token_ids)), *parts, strict=True):
        rows.copy_(torch.cat(pieces, dim=1))
    return KVSegment(identity, data)


def copy_in(slab: KVSlab, geometry: KVGeometry, segment: KVSegment) -> None:
    """Appends a segment's rows to the slab, which must end where they begin. Engine thread."""
    identity = segment.identity
    if slab.length_tokens != identity.start_tokens:
        raise ValueError("a segment must be appended where it begins")
    take_rope_of(slab, identity)
    slab.ensure_room(identity.end_tokens)
    for tensor, rows in zip(_tensors(slab), _views(segment.data, geometry, len(identity.token_ids)), strict=True):
        tensor[:, identity.start_tokens : identity.end_tokens].copy_(rows)
    slab.appended(identity.token_ids)


def rows_of(segment: KVSegment, geometry: KVGeometry) -> Iterator[torch.Tensor]:
    """The segment's keys and values layer by layer, `(kv_heads, tokens, dim)` each."""
    return _views(segment.data, geometry, len(segment.identity.token_ids))


def are_numbers(segment: KVSegment, geometry: KVGeometry) -> bool:
    """Whether exact rows contain neither NaN nor infinity. Any thread."""
    if not segment.data.nbytes:
        return True
    lowest, highest = torch.aminmax(segment.data.view(geometry.dtype))
    return bool(torch.isfinite(lowest) & torch.isfinite(highest))


def write(segment: KVSegment, geometry: KVGeometry, path: Path) -> int:
    """Writes the segment atomically: `path` is either complete or absent, even after a crash. Returns the file's size.

    Temporary file (0600), fsync, rename, fsync of the folder. Raises `SegmentNotSaved`.
    """
    payload = _memory(segment.data)
    header = _header(segment.identity, geometry, zlib.crc32(payload), segment.is_int8)
    temporary = None
    try:
        temporary, descriptor = _new_beside(path)
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            for part in (memoryview(header), payload):
                while part:
                    part = part[file.write(part) :]
            os.fsync(file.fileno())
        temporary.rename(path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            if temporary is not None:
                temporary.unlink(missing_ok=True)
        raise SegmentNotSaved(f"This conversation's memory could not be saved: {error.strerror}.") from error
    return len(header) + len(payload)


def read(
    identity: SegmentIdentity,
    geometry: KVGeometry,
    path: Path,
    memory: Memory = new_memory,
    is_int8: bool = False,
) -> KVSegment:
    """Reads the segment in `path`, if it is complete and exactly what is expected. Raises `SegmentRefused` with the
    reason. `memory` allocates flat uint8 memory of a given size in bytes."""
    data = memory(data_bytes_for(geometry, len(identity.token_ids), is_int8))
    try:
        # Without O_NONBLOCK, opening a named pipe would block forever.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise SegmentRefused("the saved memory is not a regular file")
            found = _read_header(file, status.st_size)
            crc = _claimed_crc(found)
            if found != _header(identity, geometry, crc, is_int8):
                raise SegmentRefused(_difference(found, identity, geometry))
            _read_exactly(file, _memory(data))
            if file.read(1):
                raise SegmentRefused("the saved memory is longer than it should be")
    except FileNotFoundError as error:
        raise SegmentGone("the saved memory cannot be read: its file is gone") from error
    except OSError as error:
        raise SegmentRefused(f"the saved memory cannot be read ({error.strerror})") from error
    if zlib.crc32(_memory(data)) != crc:
        raise SegmentRefused("the saved memory is damaged (its checksum is wrong)")
    return KVSegment(identity, data, is_int8)


def _new_beside(path: Path) -> tuple[Path, int]:
    """Creates a temporary file beside `path` and opens it for writing. An existing file is never reused, because it may
    belong to another program or be a link."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    for number in itertools.count(os.getpid()):
        temporary = path.with_name(f"{path.name}.{number}.tmp")
        with contextlib.suppress(FileExistsError):
            return temporary, os.open(temporary, flags, 0o600)
    raise AssertionError("unreachable")


def _memory(data: torch.Tensor) -> memoryview:
    return memoryview(data.numpy().data)


def _tensors(slab: KVSlab) -> Iterator[torch.Tensor]:
    for keys, values in zip(slab.keys, slab.values, strict=True):
        yield keys
        yield values


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One tensor of a segment's data, in the order of the file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def count_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def layer_views(
    data: torch.Tensor, geometry: KVGeometry, tokens: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Views of flat `data` for each layer: all its numbers flat, its keys and its values `(kv_heads, tokens, dim)`."""
    views = _views(data, geometry, tokens)
    start = 0
    for keys, values in zip(views, views, strict=True):
        end = start + keys.nbytes + values.nbytes
        yield data[start:end].view(geometry.dtype), keys, values
        start = end


def _layout(geometry: KVGeometry, tokens: int, is_int8: bool) -> Iterator[_Tensor]:
    """The tensors in file order: layer by layer, keys before values; at 8 bits the scales precede what they scale."""
    for number, layer in enumerate(geometry.layers):
        keys, values = (layer.kv_heads, tokens, layer.key_dim), (layer.kv_heads, tokens, layer.value_dim)
        dtype = torch.int8 if is_int8 else geometry.dtype
        if is_int8:
            groups = (layer.kv_heads, key_groups(tokens), layer.key_dim)
            yield _Tensor(f"layers.{number}.key_scales", SCALE_DTYPE, groups)
        yield _Tensor(f"layers.{number}.keys", dtype, keys)
        if is_int8:
            yield _Tensor(f"layers.{number}.value_scales", SCALE_DTYPE, (layer.kv_heads, tokens))
        yield _Tensor(f"layers.{number}.values", dtype, values)


def _views(data: torch.Tensor, geometry: KVGeometry, tokens: int, is_int8: bool = False) -> Iterator[torch.Tensor]:
    """Views of flat `data` in file order; `(kv_heads, tokens, dim)` each, scales aside."""
    start = 0
    for tensor in _layout(geometry, tokens, is_int8):
        yield data[start : start + tensor.count_bytes].view(tensor.dtype).view(tensor.shape)
        start += tensor.count_bytes


def _header(identity: SegmentIdentity, geometry: KVGeometry, crc: int, is_int8: bool) -> bytes:
    """The exact header of a segment, preceded by its length and padded so that the data is aligned."""
    tensors: dict[str, object] = {}
    start = 0
    for tensor in _layout(geometry, len(identity.token_ids), is_int8):
        end = start + tensor.count_bytes
        tensors[tensor.name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    metadata = {
        "format": f"{FORMAT_NAME}{FORMAT_VERSION}",
        "key": identity.key,
        "parent": identity.parent_key,
        "start_tokens": str(identity.start_tokens),
        "fingerprint": identity.fingerprint,
        "crc32": f"{crc:08x}",
    }
    text = json.dumps({"__metadata__": metadata, **tensors}, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGN_BYTES)
    return len(text).to_bytes(8, "little") + text


def _read_header(file: object, file_bytes: int) -> bytes:
    length = bytearray(8)
    _read_exactly(file, memoryview(length))
    count = int.from_bytes(length, "little")
    if count > file_bytes - 8:
        raise SegmentRefused("the saved memory is damaged (its header is cut off)")
    text = bytearray(count)
    _read_exactly(file, memoryview(text))
    return bytes(length + text)


def _read_exactly(file: object, target: memoryview) -> None:
    while target:
        count = file.readinto(target)  # type: ignore[attr-defined]
        if not count:
            raise SegmentRefused("the saved memory is damaged (it is cut off)")
        target = target[count:]


def _metadata(header: bytes) -> dict[str, str]:
    try:
        metadata = json.loads(header[8:])["__metadata__"]
        return {str(k): str(v) for k, v in metadata.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SegmentRefused("the saved memory is damaged (its header cannot be read)") from error


def _claimed_crc(header: bytes) -> int:
    try:
        return int(_metadata(header)["crc32"], 16)
    except (KeyError, ValueError) as error:
        raise SegmentRefused("the saved memory is damaged (it has no checksum)") from error


def _difference(header: bytes, identity: SegmentIdentity, geometry: KVGeometry) -> str:
    found = _metadata(header)
    if found.get("format") != f"{FORMAT_NAME}{FORMAT_VERSION}":
        return "the saved memory was written by another version of Keepwarm"
    if found.get("fingerprint") != identity.fingerprint:
        changed = difference(str(found.get("fingerprint")), identity.fingerprint)
        return "the saved memory was computed by another model or at another precision" + (changed and f": {changed}")
    if found.get("key") != identity.key:
        return "the saved memory belongs to another text"
    return "the saved memory is damaged (its header is not the expected one)"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
