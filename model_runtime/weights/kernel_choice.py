"""Chooses the kernels for shipped weights: our own, or the fastest of torch's, measured once per machine.

The measurement takes about a second: eight matrices of the embedded model's size. Its result is stored per CPU model,
thread count, instruction set and torch version; if any of these changes, it is measured again.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from model_runtime.native.native_library import NativeUnavailable, native_library
from model_runtime.weights.linear_int4 import Int4Matrix, KernelPlan, Scratch, packed_kernel_exists
from model_runtime.weights.q4_blocks import GROUP, Q4Blocks

PLAN_FILE = "kernel_plan.json"
_VERSION = 1
_MATRICES, _ROWS, _COLUMNS = 8, 1536, 576
_BATCHES = (16, 64, 128, 256, 512)
_NEVER = 1 << 30
_RUNS = 5


def own_kernels(cache_dir: Path, say: Callable[[str], None]) -> tuple[ctypes.CDLL | None, str]:
    """The library of our own kernels; or None, and a clause that says why they cannot run here."""
    try:
        return native_library(cache_dir, say), ""
    except NativeUnavailable as error:
        return None, str(error)


def kernel_plan(cache_dir: Path, say: Callable[[str], None]) -> tuple[KernelPlan, str]:
    """The plan for this machine and a sentence about it. If the cached result cannot be read, it is measured again.

    Our own kernels run wherever they can be compiled. They are not timed against torch's, because a noisy measurement
    must not decide which numbers a conversation's KV contains.
    """
    library, reason = own_kernels(cache_dir, say)
    if library is not None:
        return KernelPlan(True, _NEVER, torch.float32, library), (
            "Our own kernels run the weights at the bits they were shipped with."
        )
    why_not = f" Our own, faster kernels cannot run here: {reason}."
    path, machine = cache_dir / PLAN_FILE, _machine()
    known = _read(path)
    try:
        saved = known[machine]
        plan = KernelPlan(bool(saved["packed"]), int(saved["crossover_rows"]), getattr(torch, saved["gemm_dtype"]))
        return plan, str(saved["sentence"]) + why_not
    except (KeyError, TypeError, ValueError, AttributeError):
        say("Measuring which 4-bit kernel is fastest on this processor (once).")
    plan, sentence = measure()
    _write(path, known | {machine: _as_json(plan) | {"sentence": sentence}})
    return plan, sentence + why_not


def measure() -> tuple[KernelPlan, str]:
    """Times torch's kernels on this machine."""
    blocks = _blocks()
    dense = blocks.dequantise()
    gemm_dtype = _fastest_gemm(dense)
    if not packed_kernel_exists():
        return KernelPlan(False, 0, gemm_dtype), (
            "This processor or build of torch has no packed 4-bit kernel: the weights run de-quantised in "
            f"{_name(gemm_dtype)}, with the values they were shipped with."
        )
    matrices = [Int4Matrix(blocks) for _ in range(_MATRICES)]
    copies = [dense.to(gemm_dtype, copy=True) for _ in range(_MATRICES)]
    one = torch.randn(1, _COLUMNS).to(torch.bfloat16)
    typed = one.to(gemm_dtype)
    packed_ms, dense_ms = _times_ms(
        partial(_multiply, matrices, one),
        lambda: [functional.linear(typed, copy) for copy in copies],
    )
    if packed_ms > dense_ms:
        return KernelPlan(False, 0, gemm_dtype), (
            f"The packed 4-bit kernel is slower on this processor ({packed_ms:.1f} ms against {dense_ms:.1f} ms): the "
            f"weights run de-quantised in {_name(gemm_dtype)}, with the values they were shipped with."
        )
    crossover_rows = _crossover(matrices, gemm_dtype)
    sentence = "The weights run at the 4 bits they were shipped with"
    if crossover_rows < _NEVER:
        sentence += f"; steps of more than {crossover_rows} tokens de-quantise them in blocks to {_name(gemm_dtype)}"
    return KernelPlan(True, crossover_rows, gemm_dtype), f"{sentence}."


def _crossover(matrices: list[Int4Matrix], gemm_dtype: torch.dtype) -> int:
    """The number of rows up to which the packed kernel is faster, interpolated between two measured batches."""
    before = (1, -1.0)
    for rows in _BATCHES:
        x = torch.randn(rows, _COLUMNS).to(torch.bfloat16)
        packed_ms, dense_ms = _times_ms(
            partial(_multiply, matrices, x),
            partial(_multiply_dequantised, matrices, x, gemm_dtype),
        )
        excess_ms = packed_ms - dense_ms
        if excess_ms > 0:
            share = before[1] / (before[1] - excess_ms)
            return int(before[0] + share * (rows - before[0]))
        before = (rows, min(excess_ms, -1e-6))
    return _NEVER


def _multiply(matrices: list[Int4Matrix], x: torch.Tensor) -> None:
    for matrix in matrices:
        matrix.multiply(x)


def _multiply_dequantised(matrices: list[Int4Matrix], x: torch.Tensor, dtype: torch.dtype) -> None:
    scratch = Scratch()
    for matrix in matrices:
        matrix.multiply_dequantised(x, dtype, scratch)


def _fastest_gemm(weight: torch.Tensor) -> torch.dtype:
    """bfloat16 if the CPU multiplies it faster (AVX512-BF16, AMX, arm64 bf16), else float32."""
    x = torch.randn(256, weight.shape[1])
    float32_ms, bfloat16_ms = _times_ms(
        partial(functional.linear, x, weight),
        partial(functional.linear, x.to(torch.bfloat16), weight.to(torch.bfloat16)),
    )
    return torch.bfloat16 if bfloat16_ms < 0.8 * float32_ms else torch.float32


def _blocks() -> Q4Blocks:
    nibbles = torch.arange(_ROWS * _COLUMNS // 2).mul_(2_654_435_761).bitwise_right_shift_(13).to(torch.uint8)
    scale = torch.full((_ROWS, _COLUMNS // GROUP), 0.01, dtype=torch.float16)
    return Q4Blocks(nibbles.view(_ROWS, -1), scale, scale * -8)


def _times_ms(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float]:
    """The fastest of several alternating runs of each, since other programs can only make a run slower."""
    fastest = [float("inf"), float("inf")]
    for _ in range(_RUNS):
        for index, work in enumerate((first, second)):
            start = time.perf_counter()
            work()
            fastest[index] = min(fastest[index], (time.perf_counter() - start) * 1000)
    return fastest[0], fastest[1]


def _machine() -> str:
    return " | ".join(
        (
            f"format {_VERSION}",
            _cpu_model(),
            torch.backends.cpu.get_cpu_capability(),
            f"{torch.get_num_threads()} threads",
            f"torch {torch.__version__}",
        )
    )


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _read(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write(path: Path, known: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        fresh.write_text(json.dumps(known, indent=1), encoding="utf-8")
        os.replace(fresh, path)


def _as_json(plan: KernelPlan) -> dict[str, object]:
    return {"packed": plan.packed, "crossover_rows": plan.crossover_rows, "gemm_dtype": _name(plan.gemm_dtype)}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
