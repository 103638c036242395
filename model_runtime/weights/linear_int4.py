"""A linear layer that runs at the 4 bits its weights were shipped with (CPU).

One numeric function with two implementations: `y = bf16(bf16(x) @ W)` with `W = (q - 8) * scale + zero`, where scale
and zero are the file's, rounded to bfloat16 (+0.0009 mean NLL on the embedded model). Few rows go through torch's
packed kernel, which reads 4.5 bits per weight and gives each row the same bits whatever shares the batch. Its cost
grows with every row, so beyond a measured number of rows the packed matrix is de-quantised into a shared, cache-sized
scratch buffer and multiplied as a GEMM. Keeping a second copy in bfloat16 instead saved 15% of a 512-row chunk for four
times the memory: rejected.
"""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import nn

from model_runtime.weights.q4_blocks import GROUP, Q4Blocks

_SLICE_WEIGHTS = 1 << 20  # de-quantised at a time: 4 MiB of float32 stay in the cache, whatever the matrix's size


@dataclass(frozen=True, slots=True)
class KernelPlan:
    """Which kernels run, as measured on this machine. `packed` False means that no layer is kept at 4 bits. Steps of
    more than `crossover_rows` rows are multiplied in `gemm_dtype` after de-quantising. `kernels` is the library of our
    own kernels, or None if torch's kernels run."""

    packed: bool
    crossover_rows: int
    gemm_dtype: torch.dtype
    kernels: ctypes.CDLL | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class _Layout:
    """How this build of torch packs one column of `block_rows` rows into bytes: row j shares its byte with row j + 1
    (`neighbours`) or with row j + `block_rows` / 2."""

    block_rows: int
    neighbours: bool

    def split(self, by_row: torch.Tensor) -> torch.Tensor:
        """A view of `[K, N]` as `[N/block, K, block/2, 2]`, the last axis being the low and the high nibble."""
        columns, rows = by_row.shape
        half = self.block_rows // 2
        axes = (half, 2) if self.neighbours else (2, half)
        view = by_row.view(columns, rows // self.block_rows, *axes).transpose(0, 1)
        return view if self.neighbours else view.transpose(2, 3)


# AVX-512 packs 64 rows by halves, AVX2 32 rows by halves, other builds neighbours.
_LAYOUTS = tuple(_Layout(rows, neighbours) for neighbours in (False, True) for rows in (64, 32, 16))


def packed_kernel_exists() -> bool:
    """Whether this build of torch has the packed kernel, in a layout that can be read back."""
    return _layout() is not None


def fits_packed_kernel(rows: int, columns: int) -> bool:
    """Whether a matrix `[rows, columns]` can be stored in the packed kernel's layout."""
    layout = _layout()
    return layout is not None and rows % layout.block_rows == 0 and columns % GROUP == 0


@cache
def _layout() -> _Layout | None:
    """The layout on this machine, found by packing a known matrix, because it depends on the CPU's instructions and on
    torch's version. None if there is no packed kernel or its layout is unknown."""
    codes = torch.arange(64 * 64).mul_(2_654_435_761).bitwise_right_shift_(13).bitwise_and_(15)
    codes = codes.to(torch.int32).view(64, 64)
    nothing = torch.zeros(1, 64, dtype=torch.bfloat16), torch.zeros(64 // GROUP, 64, 2, dtype=torch.bfloat16)
    try:
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        torch.ops.aten._weight_int4pack_mm_for_cpu(nothing[0], packed, GROUP, nothing[1])
    except (AttributeError, NotImplementedError, RuntimeError):
        return None
    read_back = torch.empty(64, 64, dtype=torch.int8)
    for layout in _LAYOUTS:
        _unpack(packed, layout, read_back)
        if torch.equal(read_back.t().to(torch.int32) + 8, codes):
            return layout
    return None


def _unpack(packed: torch.Tensor, layout: _Layout, target: torch.Tensor) -> None:
    """Writes `q - 8` into `target`, int8 `[K, N]`."""
    columns, rows = target.shape
    nibbles = layout.split(target.view(torch.uint8))
    packed_bytes = packed.view(rows // layout.block_rows, columns, layout.block_rows // 2)
    torch.bitwise_and(packed_bytes, 15, out=nibbles[..., 0])
    torch.bitwise_right_shift(packed_bytes, 4, out=nibbles[..., 1])
    target.sub_(8)


class Scratch:
    """Buffers that all layers of one model de-quantise into. Each thread has its own, since an abandoned engine thread
    may still run beside its successor; they are freed with their thread."""

    def __init__(self) -> None:
        self._own = threading.local()

    def take(self, rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
        """`[rows, columns]` of that dtype with undefined content. The next call for this dtype reuses the memory."""
        count = rows * columns
        buffers: dict[torch.dtype, torch.Tensor] = self._own.__dict__.setdefault("buffers", {})
        buffer = buffers.get(dtype)
        if buffer is None or buffer.numel() < count:
            buffers.pop(dtype, None)  # free it before the larger one is allocated
            with torch.inference_mode(False):  # a buffer made in inference mode could not be written outside it
                buffer = buffers[dtype] = torch.empty(count, dtype=dtype)
        return buffer[:count].view(rows, columns)

    def clear(self) -> None:
        """Frees the buffers of all threads."""
        self._own = threading.local()


class Int4Matrix:
    """A weight matrix `[N, K]` in the packed kernel's layout.

    `packed` uint8 `[N, K/2]` in this machine's layout (never saved); `scales_and_zeros` bfloat16 `[K/32, N, 2]`.
    """

    __slots__ = ("columns", "packed", "rows", "scales_and_zeros")

    def __init__(self, blocks: Q4Blocks) -> None:
        self.rows, self.columns = blocks.shape
        self.packed: torch.Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(blocks.codes(), 1)
        scale = blocks.scale.float()
        # The kernel computes (q - 8) * scale + zero. Zero is computed from the unrounded scale, so that it corrects the
        # middle of the grid for the rounding of scale.
        rounded = scale.to(torch.bfloat16)
        zero = blocks.minimum.float() + 8 * scale
        self.scales_and_zeros = torch.stack([rounded, zero.to(torch.bfloat16)], -1).transpose(0, 1).contiguous()

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """`x` bfloat16 `[M, K]` to bfloat16 `[M, N]` by the packed kernel."""
        y: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, self.packed, GROUP, self.scales_and_zeros)
        return y

    def multiply_dequantised(self, x: torch.Tensor, dtype: torch.dtype, scratch: Scratch) -> torch.Tensor:
        """`x` bfloat16 `[M, K]` to bfloat16 `[M, N]` by GEMMs in `dtype`, a slice of outputs at a time; overwrites
        `scratch`."""
        typed = x.to(dtype)
        y = torch.empty(x.shape[0], self.rows, dtype=torch.bfloat16)
        step = max(64, _SLICE_WEIGHTS // self.columns // 64 * 64)
        for start in range(0, self.rows, step):
            end = min(start + step, self.rows)
            y[:, start:end] = torch.matmul(typed, self.dequantised_transposed(start, end, dtype, scratch))
        return y

    def dequantised_transposed(self, start: int, end: int, dtype: torch.dtype, scratch: Scratch) -> torch.Tensor:
        """The weights of outputs `start..end` as the packed kernel sees them, `[K, end - start]`; `start` is a multiple
        of 64.

        Computed in float32, rounded once to `dtype`. A view of `scratch`.
        """
        layout = _layout()
        assert layout is not None, "an Int4Matrix exists only where the packed kernel does"
        codes = scratch.take(self.columns, end - start, torch.int8)
        _unpack(self.packed[start:end], layout, codes)
        weights = scratch.take(self.columns, end - start, torch.float32).copy_(codes)
        by_group = weights.view(-1, GROUP, end - start)
        scales_and_zeros = self.scales_and_zeros[:, start:end].float()
        scale, zero = scales_and_zeros[..., 0].contiguous(), scales_and_zeros[..., 1].contiguous()
        torch.addcmul(zero.unsqueeze(1), by_group, scale.unsqueeze(1), out=by_group)
        if dtype == torch.float32:
            return weights
        return scratch.take(self.columns, end - start, dtype).copy_(weights)


class Int4Linear(nn.Module):
    """`nn.Linear` on an `Int4Matrix`: `[.., K]` float32 or bfloat16 to `[.., N]` of the same dtype.

    Beyond the crossover it writes into the model's scratch buffers, which belong to the calling thread.
    """

    bias: torch.Tensor | None

    def __init__(self, matrix: Int4Matrix, bias: torch.Tensor | None, plan: KernelPlan, scratch: Scratch) -> None:
        super().__init__()
        self.matrix: Int4Matrix | None = matrix
        self.plan, self.scratch = plan, scratch
        self.in_features, self.out_features = matrix.columns, matrix.rows
        self.register_buffer("packed", matrix.packed, persistent=False)
        self.register_buffer("scales_and_zeros", matrix.scales_and_zeros, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def release(self) -> None:
        """Frees the matrix; the layer cannot be used afterwards."""
        self.matrix = None
        self.scratch.clear()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same leading dimensions, `out_features` last."""
        if self.matrix is None:
            raise RuntimeError("this model was unloaded")
        rows = x.reshape(-1, self.in_features).to(torch.bfloat16)
        if rows.shape[0] <= self.plan.crossover_rows:
            y = self.matrix.multiply(rows)
        else:
            y = self.matrix.multiply_dequantised(rows, self.plan.gemm_dtype, self.scratch)
        y = y.to(x.dtype).view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, 4 bits, group {GROUP}"
