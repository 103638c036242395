"""Reads tensors of a GGUF file as they lie there: numbers, or the bytes of blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

from model_runtime.loading.checks.gguf_header import GgufHeader, TensorInfo

DENSE: dict[GGMLQuantizationType, np.dtype[Any]] = {
    GGMLQuantizationType.F32: np.dtype("<f4"),
    GGMLQuantizationType.F16: np.dtype("<f2"),
    GGMLQuantizationType.BF16: np.dtype("<u2"),
    GGMLQuantizationType.F64: np.dtype("<f8"),
}


def read_raw(path: Path, header: GgufHeader, info: TensorInfo) -> np.ndarray[Any, Any]:
    """A read-only view of the file, or of the part that has the tensor, outputs first: float32, float16, float64,
    bfloat16 as uint16, or the blocks of each row as uint8. The header was checked: the tensor lies within the file."""
    path, start = (path, header.data_start) if info.part == 0 else header.other_parts[info.part - 1]
    dtype: np.dtype[Any] = DENSE.get(info.kind, np.dtype(np.uint8))
    return np.memmap(path, dtype=dtype, mode="r", offset=start + info.offset, shape=raw_shape(info))


def raw_shape(info: TensorInfo) -> tuple[int, ...]:
    """The shape of what `read_raw` returns."""
    if info.kind in DENSE:
        return info.shape
    block, block_bytes = GGML_QUANT_SIZES[info.kind]
    return (*info.shape[:-1], info.shape[-1] // int(block) * int(block_bytes))


def read_numbers(path: Path, header: GgufHeader, info: TensorInfo) -> np.ndarray[Any, Any]:
    """The tensor's values, float32."""
    return as_numbers(read_raw(path, header, info), info.kind)


def as_numbers(data: np.ndarray[Any, Any], kind: GGMLQuantizationType) -> np.ndarray[Any, Any]:
    """What `read_raw` returned, as float32."""
    if kind == GGMLQuantizationType.BF16:
        return (data.astype(np.uint32) << 16).view(np.float32)
    if kind in DENSE:
        return data.astype(np.float32)
    return np.asarray(dequantize(data, kind), dtype=np.float32)
