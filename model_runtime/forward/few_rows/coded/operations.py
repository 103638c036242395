"""What is computed with a block-quantised matrix on a device: by cuda/coded.cu, and by its twin in torch."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Protocol

import torch

from model_runtime.forward.few_rows.coded.planes import E4M3, INT8, LEVEL, SIGNED, CodedPlanes, Form
from model_runtime.forward.few_rows.nvrtc import CudaKernel, CudaModule
from model_runtime.weights.coded.coded_rows import BLOCK, Scales

_WARPS, _ROWS_OF_A_WARP = 4, 2  # as in coded.cu
_NUMBERS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_INT8_FACTOR = 7.874015718698502e-3  # 1/127, as bitsandbytes has it
_POWER_BIAS = 128


class CodedOperations(Protocol):
    """On the planes' device. Both round once to the dtype that they give."""

    def multiply(self, planes: CodedPlanes, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """`x` `[tokens, columns]`, in the order of the codes, to `[tokens, rows]` in its dtype; `bias` float32."""

    def dequantise(self, planes: CodedPlanes, start: int, end: int, dtype: torch.dtype) -> torch.Tensor:
        """Rows `start..end` as numbers, `[end - start, columns]`, in the order of the codes."""


class TorchCodedOperations:
    """The twin, from the same planes by the same formulas."""

    def multiply(self, planes: CodedPlanes, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """See `CodedOperations`."""
        product = x.float() @ _weights(planes, 0, planes.rows).t()
        return (product if bias is None else product + bias).to(x.dtype)

    def dequantise(self, planes: CodedPlanes, start: int, end: int, dtype: torch.dtype) -> torch.Tensor:
        """See `CodedOperations`."""
        return _weights(planes, start, end).to(dtype)


class Coded(ctypes.Structure):
    """`Coded` of coded.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("codes", "high", "scale", "minimum", "zero")),
        *((name, ctypes.c_void_p) for name in ("super_scale", "super_minimum", "levels", "nested", "bias", "x", "y")),
        *((name, ctypes.c_int) for name in ("rows", "columns", "runs", "shift", "tokens", "first", "count")),
        ("offset", ctypes.c_float),
    )


def argument_of(planes: CodedPlanes, y: torch.Tensor) -> Coded:
    """The argument of a kernel that writes to `y`; pointers live as long as the planes and `y`."""
    pointers = {name: tensor.data_ptr() for name, tensor in planes.tensors.items()}
    grid = planes.grid
    return Coded(
        **pointers,
        y=y.data_ptr(),
        rows=planes.rows,
        columns=planes.columns,
        runs=grid.runs(planes.columns),
        shift=grid.run.bit_length() - 1,
        offset=grid.offset,
    )


def macros_of(form: Form, dtype: torch.dtype) -> dict[str, int]:
    """All macros of coded.cu."""
    return {**form.macros, "NUMBER": _NUMBERS[dtype]}


class CudaCodedOperations:
    """The kernels, compiled when a form is first met. On torch's current stream. Raises `NvrtcUnavailable` where they
    cannot be compiled, `RuntimeError` where they cannot be launched."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def multiply(self, planes: CodedPlanes, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """See `CodedOperations`."""
        x = x.contiguous()
        y = x.new_empty((x.shape[0], planes.rows))
        argument = argument_of(planes, y)
        argument.x, argument.tokens = x.data_ptr(), x.shape[0]
        argument.bias = None if bias is None else bias.data_ptr()
        at_once = 1 if x.shape[0] == 1 else 8
        blocks = (-(-planes.rows // (_WARPS * _ROWS_OF_A_WARP)), -(-x.shape[0] // at_once))
        self._launch(f"multiply_{at_once}", planes, x.dtype, blocks, argument)
        return y

    def dequantise(self, planes: CodedPlanes, start: int, end: int, dtype: torch.dtype) -> torch.Tensor:
        """See `CodedOperations`."""
        numbers = torch.empty((end - start, planes.columns), dtype=dtype, device=self._device)
        argument = argument_of(planes, numbers)
        argument.first, argument.count = start, end - start
        self._launch("dequantise", planes, dtype, (-(-(end - start) // _WARPS), 1), argument)
        return numbers

    def _launch(
        self, name: str, planes: CodedPlanes, dtype: torch.dtype, blocks: tuple[int, int], argument: Coded
    ) -> None:
        kernel = _kernel(name, planes.form, dtype, self._device)
        with torch.cuda.device(self._device):
            kernel.launch(blocks, argument, torch.cuda.current_stream(self._device).cuda_stream)


@cache
def _module(form: Form, dtype: torch.dtype, device: torch.device) -> CudaModule:
    return CudaModule("coded.cu", device, macros_of(form, dtype))


@cache
def _kernel(name: str, form: Form, dtype: torch.dtype, device: torch.device) -> CudaKernel:
    return _module(form, dtype, device).kernel(name, 32 * _WARPS)


def _weights(planes: CodedPlanes, start: int, end: int) -> torch.Tensor:
    """float32 `[end - start, columns]`."""
    form, parts = planes.form, planes.tensors
    codes = _unpacked(parts["codes"][start:end], form.low)
    if form.high:
        codes |= _unpacked(parts["high"][start:end], form.high) << form.low
    scale, minimum = _grid(planes, start, end)

    def of_columns(entries: torch.Tensor) -> torch.Tensor:
        return entries.repeat_interleave(planes.grid.run, 1)[:, : planes.columns]

    if form.meaning == LEVEL:
        return of_columns(scale) * parts["levels"][codes.int()]
    if form.meaning == E4M3:
        return of_columns(scale) * codes.view(torch.float8_e4m3fn).float()
    numbers = (codes.view(torch.int8) if form.meaning in (SIGNED, INT8) else codes).float()
    if form.meaning == INT8:
        return of_columns(scale) * numbers * _INT8_FACTOR
    return torch.addcmul(of_columns(minimum), of_columns(scale), numbers)


def _grid(planes: CodedPlanes, start: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and minimums of runs, float32 `[end - start, runs]`."""
    parts, grid = planes.tensors, planes.grid
    stored = parts["scale"][start:end]

    def of_blocks(name: str) -> torch.Tensor:
        return parts[name][start:end].float().repeat_interleave(BLOCK // grid.run, 1)

    if grid.scales is Scales.PAIRS:
        return (stored & 15) * of_blocks("super_scale"), (stored >> 4) * -of_blocks("super_minimum")
    if grid.scales is Scales.SUPER:
        scale = stored * of_blocks("super_scale")
    elif grid.scales is Scales.POWERS:
        scale = torch.ldexp(torch.ones_like(stored, dtype=torch.float32), stored.int() - _POWER_BIAS)
    elif grid.scales is Scales.NESTED:
        nested, runs = parts["nested"], stored.shape[1]
        places = torch.arange(start * runs, end * runs, device=stored.device).view(-1, runs) // BLOCK
        scale = nested[stored.int()] * nested[257 + places] + nested[256]
    else:
        scale = stored.float()
    if "zero" in parts:
        return scale, scale * -parts["zero"][start:end].float()
    if "minimum" not in parts:
        return scale, scale * -grid.offset
    minimum = parts["minimum"][start:end]
    if grid.scales is Scales.SUPER:
        return scale, minimum * -of_blocks("super_minimum")
    return scale, minimum.float()


def _unpacked(packed: torch.Tensor, bits: int) -> torch.Tensor:
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    fields: torch.Tensor = (packed.unsqueeze(-1) >> shifts) & (2**bits - 1)
    return fields.flatten(1)
