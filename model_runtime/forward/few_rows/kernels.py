"""The compiled kernels of cuda/few_rows.cu."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from model_runtime.forward.few_rows.nvrtc import CudaKernel, CudaModule

MOST_ROWS = 64
_TILES = (8, 16, 32, 64)
_PRODUCT_THREADS, _GATED_THREADS = 256, 512
_TABLE_BYTES = 256 * 256  # of a product's shared memory: 256 bytes for each value of a byte of codes
MOST_NORMED_BYTES = 16384  # of activations that a product normalises itself, after the table in shared memory


@dataclass(frozen=True, slots=True)
class ProductKernels:
    """`by_rows` maps the most rows that a kernel multiplies to that kernel. `normed` also normalises its input.
    `blocks`: how many blocks are launched at once."""

    by_rows: dict[int, CudaKernel]
    normed: CudaKernel
    blocks: int

    def for_rows(self, rows: int) -> CudaKernel:
        """The kernel for `rows` rows, at most `MOST_ROWS`."""
        return self.by_rows[next(most for most in _TILES if most >= rows)]


@dataclass(frozen=True, slots=True)
class FewRowsKernels:
    """All kernels for one device."""

    product: ProductKernels
    gated: ProductKernels
    normalise: CudaKernel
    place: CudaKernel


@cache
def few_rows_kernels(device: torch.device, nested: bool) -> FewRowsKernels:
    """The kernels, compiled once per process, also across rebuilds of the engine. `nested`: the scales of the matrices
    are packed too (double quantization). Raises `NvrtcUnavailable`."""
    module = CudaModule("few_rows.cu", device, {"NESTED": int(nested)})
    processors = torch.cuda.get_device_properties(device).multi_processor_count

    def products(name: str, threads: int, blocks: int) -> ProductKernels:
        return ProductKernels(
            {rows: module.kernel(f"{name}_{rows}", threads, _TABLE_BYTES) for rows in _TILES},
            module.kernel(f"{name}_normed", threads, _TABLE_BYTES + MOST_NORMED_BYTES),
            blocks,
        )

    return FewRowsKernels(
        products("multiply", _PRODUCT_THREADS, 2 * processors),
        products("gate", _GATED_THREADS, processors),
        module.kernel("normalise", 256),
        module.kernel("place", 128),
    )
