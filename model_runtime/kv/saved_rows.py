"""Converts KV rows between the device's precision and the one used in host memory and in files: exact or 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from model_runtime.interface import protocol
from model_runtime.interface.config import SavedKvDtype
from model_runtime.interface.errors import ModelLoadError
from model_runtime.interface.numerics import with_part
from model_runtime.interface.segments import SegmentIdentity
from model_runtime.kv.geometry import KVGeometry
from model_runtime.kv.mapped_memory import new_memory
from model_runtime.kv.segment import (
    KVSegment,
    Memory,
    are_numbers,
    at_8_bits,
    data_bytes_for,
    exactly,
    joined,
    own_segment,
    read,
    write,
)
from model_runtime.weights.quantization import dtype_name


class SavedRows:
    """Packs, unpacks, saves and loads segments. Any thread. `memory` allocates host memory for rows that are about to
    be copied to the device, pinned where that helps. Raises `ModelLoadError` for a model whose head sizes do not suit
    8 bits."""

    def __init__(self, geometry: KVGeometry, dtype: SavedKvDtype, memory: Memory | None = None) -> None:
        self.geometry = geometry
        self._memory = memory or new_memory
        self.is_int8 = dtype == "int8"
        if self.is_int8 and any(layer.key_dim % 2 or layer.value_dim % 2 for layer in geometry.layers):
            raise ModelLoadError("This model's heads have odd sizes; start without --cold-kv-dtype int8.")

    def fingerprint(self, model: str, computed: torch.dtype) -> str:
        """What rows `computed` in that precision depend on. Rows that were rounded, on the device or to 8 bits when
        saved, never pass for exact ones, and neither do rows computed after them: a process that saves int8 uses this
        fingerprint for all its rows."""
        if self.geometry.dtype != computed:
            model = with_part(model, "kv", dtype_name(self.geometry.dtype))
        return with_part(model, "cold", "int8") if self.is_int8 else model

    def packed(self, exact: KVSegment) -> KVSegment:
        """The segment as it is saved. Raises `ValueError` for rows with NaN or infinity, which must not be saved."""
        if not are_numbers(exact, self.geometry):
            raise ValueError("these rows are not numbers")
        return at_8_bits(exact, self.geometry) if self.is_int8 else exact

    def unpacked(self, segment: protocol.Segment) -> KVSegment:
        """The segment in the device's precision."""
        return exactly(own_segment(segment), self.geometry, self._memory)

    def join(self, identity: SegmentIdentity, segments: Sequence[protocol.Segment]) -> KVSegment | None:
        """Joins segments into one. None at 8 bits, where a key's scale belongs to 64 tokens of one segment."""
        if self.is_int8:
            return None
        return joined(identity, [own_segment(segment) for segment in segments], self.geometry)

    def save(self, segment: protocol.Segment, path: Path) -> int:
        """Writes the file atomically and returns its size in bytes. Raises `SegmentNotSaved`."""
        return write(own_segment(segment), self.geometry, path)

    def load(self, identity: SegmentIdentity, path: Path) -> KVSegment:
        """Reads and verifies the segment in the file. Raises `SegmentRefused`."""
        return read(identity, self.geometry, path, new_memory if self.is_int8 else self._memory, self.is_int8)

    def bytes_for(self, tokens: int) -> int:
        """How many bytes the saved rows of `tokens` tokens take."""
        return data_bytes_for(self.geometry, tokens, self.is_int8)
