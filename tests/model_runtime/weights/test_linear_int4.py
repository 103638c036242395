"""The 4-bit layer: the file's own grid, one function whichever kernel computes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, dequantize, quantize

from model_runtime.weights.linear_int4 import (
    Int4Linear,
    Int4Matrix,
    KernelPlan,
    Scratch,
    fits_packed_kernel,
    packed_kernel_exists,
)
from model_runtime.weights.q4_blocks import Q4Blocks, read_q4_0, read_q4_1, read_q8_0

ROWS, COLUMNS = 192, 96


def weights(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, (ROWS, COLUMNS)).astype(np.float32)


def q4_1_blocks(seed: int = 1) -> Q4Blocks:
    return read_q4_1(torch.from_numpy(quantize(weights(seed), GGMLQuantizationType.Q4_1)))


@pytest.fixture
def blocks() -> Q4Blocks:
    return q4_1_blocks()


@pytest.mark.parametrize(
    ("kind", "read"),
    [
        (GGMLQuantizationType.Q4_0, read_q4_0),
        (GGMLQuantizationType.Q4_1, read_q4_1),
        (GGMLQuantizationType.Q8_0, read_q8_0),
    ],
)
def test_blocks_mean_what_the_gguf_library_says(kind: GGMLQuantizationType, read: object) -> None:
    raw = quantize(weights(2), kind)
    expected = torch.from_numpy(dequantize(raw, kind))
    found = read(torch.from_numpy(raw)).dequantise()
    # ggml computes d * (q - 8) where this computes d * q - 8 * d: the same number, one float32 rounding apart.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 if kind == GGMLQuantizationType.Q4_0 else 0)


def test_this_machine_has_the_packed_kernel() -> None:
    assert packed_kernel_exists()
    assert fits_packed_kernel(ROWS, COLUMNS)
    assert not fits_packed_kernel(ROWS, 40)


def test_packing_keeps_the_grid_within_bfloat16_rounding_of_scale_and_zero(blocks: Q4Blocks) -> None:
    seen = Int4Matrix(blocks).dequantised_transposed(0, ROWS, torch.float32, Scratch()).t()
    codes = blocks.codes().view(ROWS, -1, 32)
    scale, minimum = blocks.scale.float().unsqueeze(-1), blocks.minimum.float().unsqueeze(-1)
    allowed = ((codes - 8).abs() * scale + (minimum + 8 * scale).abs()) * 2.0**-8
    gap = (seen - blocks.dequantise()).abs().view(ROWS, -1, 32)
    assert bool((gap <= allowed).all())


def test_the_kernel_sees_the_weights_that_are_de_quantised(blocks: Q4Blocks) -> None:
    """A unit vector in gives a column out: the packed layout is read back as the kernel reads it."""
    matrix = Int4Matrix(blocks)
    columns = matrix.multiply(torch.eye(COLUMNS, dtype=torch.bfloat16))
    assert torch.equal(columns, matrix.dequantised_transposed(0, ROWS, torch.bfloat16, Scratch()))


@pytest.mark.parametrize("gemm_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_kernels_compute_the_same_function(blocks: Q4Blocks, gemm_dtype: torch.dtype, dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    x, bias = torch.randn(2, 20, COLUMNS, dtype=dtype), torch.randn(ROWS)
    few, many = (
        Int4Linear(Int4Matrix(blocks), bias, KernelPlan(True, rows, gemm_dtype), Scratch()) for rows in (100, 1)
    )
    assert few(x).dtype == many(x).dtype
    expected = x.to(torch.bfloat16).float() @ blocks.dequantise().t() + bias
    for found in (few(x), many(x)):
        assert found.shape == (2, 20, ROWS)
        torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.03)


def test_a_row_does_not_depend_on_what_shares_its_batch(blocks: Q4Blocks) -> None:
    matrix, x = Int4Matrix(blocks), torch.randn(9, COLUMNS).to(torch.bfloat16)
    together = matrix.multiply(x)
    for index in range(9):
        assert torch.equal(matrix.multiply(x[index : index + 1]), together[index : index + 1])


def test_a_large_matrix_is_de_quantised_in_slices(blocks: Q4Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, x = Int4Matrix(blocks), torch.randn(5, COLUMNS).to(torch.bfloat16)
    whole = matrix.multiply_dequantised(x, torch.float32, Scratch())
    monkeypatch.setattr("model_runtime.weights.linear_int4._SLICE_WEIGHTS", 64 * COLUMNS)
    sliced = matrix.multiply_dequantised(x, torch.float32, Scratch())
    torch.testing.assert_close(sliced, whole, rtol=0.01, atol=0.01)


def test_scratch_made_in_inference_mode_can_be_used_outside(blocks: Q4Blocks) -> None:
    linear = Int4Linear(Int4Matrix(blocks), None, KernelPlan(True, 0, torch.float32), Scratch())
    x = torch.randn(4, COLUMNS)
    with torch.inference_mode():
        inside = linear(x)
    assert torch.equal(linear(x), inside)
