"""Block-quantised matrices in our own kernels: every format's weights to the last bit, in the bytes of the file."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from bitsandbytes import functional
from torch import nn

from model_runtime.weights.coded.codebooks import CODEBOOKS, held_bytes
from model_runtime.weights.coded.coded_rows import Kind, Scales
from model_runtime.weights.coded.four_bits import CodedFourBits, coded_four_bits
from model_runtime.weights.coded.ggml_formats import FORMATS, NATIVE_FORMATS, CodedQ4
from model_runtime.weights.coded.nf4 import quantise_nf4
from model_runtime.weights.ggml_blocks import GgmlBlocks
from model_runtime.weights.native_matrix import NativeEmbedding, NativeLinear, NativeMatrix
from model_runtime.weights.q4_blocks import read_q4_0, read_q4_1, read_q8_0
from model_runtime.weights.stored_weights import Stored
from tests.model_runtime.tiny_blocks import HALVES, block_bytes, extreme_blocks, random_blocks, set_halves, values

READ = {"Q4_0": read_q4_0, "Q4_1": read_q4_1, "Q8_0": read_q8_0}
ROWS, COLUMNS = 70, 512  # rows that fill no pair of tiles, two super-blocks


def stored(kind: str, rows: np.ndarray) -> Stored:
    """A file's bytes as the loader keeps them."""
    tensor = torch.from_numpy(np.ascontiguousarray(rows))
    return READ[kind](tensor) if kind in READ else GgmlBlocks(tensor, kind)


def all_rows(matrix: NativeMatrix) -> torch.Tensor:
    return matrix.take(torch.arange(matrix.rows))


def test_every_format_has_a_test() -> None:
    assert set(HALVES) == NATIVE_FORMATS


@pytest.mark.parametrize("kind", HALVES)
def test_the_weights_are_those_of_the_file_to_the_last_bit(kind: str, library: ctypes.CDLL) -> None:
    for rows in (random_blocks(kind, ROWS, COLUMNS, 1), extreme_blocks(kind, ROWS, COLUMNS, 2)):
        assert torch.equal(
            all_rows(NativeMatrix(stored(kind, rows), None, library)), torch.from_numpy(values(kind, rows))
        )


@pytest.mark.parametrize("kind", HALVES)
def test_every_byte_of_a_block_means_what_it_means_in_the_file(kind: str, own_library: ctypes.CDLL) -> None:
    """Each row has one byte of one block changed: a field that is dropped, shifted or taken from another group is
    wrong in at least one of them. The bytes of halves change in their fractions only."""
    size = block_bytes(kind)
    rows = np.repeat(random_blocks(kind, 1, COLUMNS, 4), size, axis=0)
    halves = {place + 1 for place in HALVES[kind]}
    for byte in range(size):
        rows[byte, byte] ^= 0x03 if byte in halves else 0x5B if kind != "MXFP4" or byte else 0x03
    expected = torch.from_numpy(values(kind, rows))
    assert torch.equal(all_rows(NativeMatrix(stored(kind, rows), None, own_library)), expected)
    changed = (expected != torch.from_numpy(values(kind, random_blocks(kind, 1, COLUMNS, 4)))).any(1)
    assert changed.all()


@pytest.mark.parametrize("kind", HALVES)
def test_products_use_these_weights_and_do_not_depend_on_other_rows(kind: str, library: ctypes.CDLL) -> None:
    torch.manual_seed(5)
    rows, bias, x = random_blocks(kind, ROWS, COLUMNS, 5), torch.randn(ROWS), torch.randn(27, COLUMNS)
    matrix = NativeMatrix(stored(kind, rows), bias, library)
    found = matrix.multiply(x)
    expected = x.double() @ torch.from_numpy(values(kind, rows)).double().t() + bias.double()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)
    for cuts in ([1] * 27, [2, 3, 4, 5, 13], [12, 12, 3], [6, 7, 8, 6]):
        assert torch.equal(torch.cat([matrix.multiply(part) for part in x.split(cuts)]), found)


def coded(kind: str) -> Stored | CodedFourBits:
    if kind not in ("nf4", "fp4"):
        return stored(kind, random_blocks(kind, ROWS, COLUMNS, 9))
    found = four_bits(kind, nested=True)[1]
    assert found is not None
    return found


@pytest.mark.parametrize("kind", [*HALVES, "nf4", "fp4"])
def test_registers_of_every_width_give_the_same_bits(kind: str, libraries: dict[str, ctypes.CDLL]) -> None:
    """But for processors that cannot add to a product without rounding it first: these round sums differently."""
    matrices = {name: NativeMatrix(coded(kind), None, library) for name, library in libraries.items()}
    first, *others = matrices.values()
    assert all(torch.equal(all_rows(other), all_rows(first)) for other in others)
    x = torch.randn(7, first.columns, generator=torch.Generator().manual_seed(3))
    products = {name: torch.cat([m.multiply(x), m.multiply(x[:3])]) for name, m in matrices.items()}
    assert torch.equal(products["AVX2"], products["this one"])
    torch.testing.assert_close(products["SSE"], products["this one"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", [*HALVES, "nf4", "fp4"])
def test_whatever_is_dropped_or_shifted_shows_in_the_weights(kind: str, own_library: ctypes.CDLL) -> None:
    """The comparisons above would find it: each array of a matrix matters, and so does each entry's place."""
    expected = all_rows(NativeMatrix(coded(kind), None, own_library))
    matrix = NativeMatrix(coded(kind), None, own_library)
    for tensor in matrix.tensors:
        if tensor.data_ptr() == matrix.struct.level_bytes:
            continue  # for activations that are bytes, which have tests of their own
        right = tensor.clone()
        for change in (torch.zeros_like, shifted):
            tensor.copy_(change(right))
            assert not torch.equal(all_rows(matrix), expected)
        tensor.copy_(right)  # tables are shared by all matrices
    assert torch.equal(all_rows(matrix), expected)
    for name in ("offset", "shift"):
        matrix = NativeMatrix(coded(kind), None, own_library)
        setattr(matrix.struct, name, getattr(matrix.struct, name) + 1)
        is_unused = name == "offset" and (matrix.struct.minimum is not None or kind == "Q2_K")
        assert torch.equal(all_rows(matrix), expected) == is_unused


def shifted(tensor: torch.Tensor) -> torch.Tensor:
    """Each entry where the next one should be: of the next run of columns, or of the table."""
    return tensor.roll(1, 1 if tensor.ndim > 1 else 0)


@pytest.mark.parametrize("kind", HALVES)
def test_a_matrix_takes_the_bytes_of_the_file(kind: str, own_library: ctypes.CDLL) -> None:
    rows = random_blocks(kind, 256, 2048, 6)
    allowed = held_bytes(kind, rows.shape[0] * 2048) if kind in CODEBOOKS else rows.nbytes
    assert NativeMatrix(stored(kind, rows), None, own_library).nbytes <= 1.05 * allowed


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K", "Q2_K"])
def test_a_scale_that_is_no_number_is_refused(kind: str, own_library: ctypes.CDLL) -> None:
    for place in HALVES[kind]:
        blocks = random_blocks(kind, 40, 256, 7).reshape(40, -1, block_bytes(kind))
        set_halves(blocks[33:34, :1], place, np.array([[np.inf if place else np.nan]]))
        with pytest.raises(ValueError, match="not a finite number"):
            NativeMatrix(stored(kind, blocks.reshape(40, -1)), None, own_library)


def test_an_exponent_that_makes_weights_infinite_is_refused(own_library: ctypes.CDLL) -> None:
    blocks = random_blocks("MXFP4", 40, 64, 7).reshape(40, -1, block_bytes("MXFP4"))
    blocks[33, 1, 0] = 252
    rows = blocks.reshape(40, -1)
    found = all_rows(NativeMatrix(stored("MXFP4", rows), None, own_library))
    assert torch.equal(found, torch.from_numpy(values("MXFP4", rows)))
    blocks[33, 1, 0] = 253
    with pytest.raises(ValueError, match="not a finite number"):
        NativeMatrix(stored("MXFP4", rows), None, own_library)


def test_sizes_that_do_not_fit_are_refused(own_library: ctypes.CDLL) -> None:
    with pytest.raises(ValueError, match="a multiple of 32 columns, not 40"):
        NativeMatrix(torch.ones(32, 40), None, own_library)
    blocks = read_q4_1(torch.from_numpy(random_blocks("Q4_1", 64, 64)))
    for part in ("scale", "minimum"):
        short = replace(blocks, **{part: getattr(blocks, part)[:, :1]})
        with pytest.raises(ValueError, match="other scales than its blocks need"):
            NativeMatrix(short, None, own_library)
    with pytest.raises((ValueError, RuntimeError)):
        NativeMatrix(GgmlBlocks(torch.zeros(4, 143, dtype=torch.uint8), "Q4_K"), None, own_library)


def test_rows_outside_a_matrix_are_refused(own_library: ctypes.CDLL) -> None:
    embedding = NativeEmbedding(NativeMatrix(torch.ones(40, 32), None, own_library), is_shared=False, factor=2.0)
    assert torch.equal(embedding(torch.tensor([[3], [39]])), torch.full((2, 1, 32), 2.0))
    assert embedding(torch.empty(1, 0, dtype=torch.int64)).shape == (1, 0, 32)
    for wrong in (40, -1, 2**33):
        with pytest.raises(IndexError, match="rows 0 to 39"):
            embedding(torch.tensor([[0, wrong]]))


def test_a_layer_says_its_shape_and_computing_with_that_gives_no_numbers(own_library: ctypes.CDLL) -> None:
    matrix = NativeMatrix(torch.ones(40, 32), None, own_library)
    for layer in (NativeEmbedding(matrix, is_shared=False), NativeLinear(matrix)):
        assert (layer.weight.shape, layer.weight.dtype, layer.weight.device.type) == ((40, 32), torch.float32, "cpu")
        assert layer.weight.untyped_storage().nbytes() == 4
        assert not list(layer.parameters())
        assert torch.isnan(torch.ones(1, 32) @ layer.weight.t()).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_numbers_keep_their_bits(dtype: torch.dtype, own_library: ctypes.CDLL) -> None:
    tiny = 1e-7 if dtype == torch.bfloat16 else 1.0  # too small for float16
    numbers = (torch.randn(70, 96) * tiny).to(dtype)
    for held in (numbers, numbers.float()):
        matrix = NativeMatrix(held, None, own_library)
        assert torch.equal(all_rows(matrix), numbers.float())
        kind = {torch.float32: Kind.SINGLE, torch.float16: Kind.HALF, torch.bfloat16: Kind.BRAIN}[dtype]
        assert matrix.kind is kind


def test_q4_0_needs_no_minimums() -> None:
    blocks = read_q4_0(torch.from_numpy(random_blocks("Q4_0", 8, 64)))
    assert CodedQ4(blocks, 8).rows(0, 8).minimum is None
    assert [grid.scales for grid in (FORMATS["Q4_K"].grid, FORMATS["Q2_K"].grid)] == [Scales.SUPER, Scales.PAIRS]


def four_bits(
    kind: str, nested: bool, run: int = 64, columns: int = 640
) -> tuple[Any, CodedFourBits | None, torch.Tensor]:
    """A quantised layer, its matrix as codes, and bitsandbytes' float32 weights. 256 scales, which share a factor, are
    no whole number of rows."""
    torch.manual_seed(8)
    weight = torch.randn(700, columns) * torch.rand(700, 1)
    packed, state = functional.quantize_4bit(weight, blocksize=run, compress_statistics=nested, quant_type=kind)
    layer = nn.Module()
    layer.in_features, layer.out_features = columns, 700
    layer.weight = nn.Parameter(packed, requires_grad=False)
    layer.weight.quant_state = state
    return layer, coded_four_bits(layer), functional.dequantize_4bit(packed, state)


@pytest.mark.parametrize("run", [64, 128])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bits_are_bitsandbytes_own(kind: str, nested: bool, run: int, library: ctypes.CDLL) -> None:
    """To the last bit, roundings of double quantization included."""
    layer, coded, expected = four_bits(kind, nested, run)
    assert coded is not None
    matrix = NativeMatrix(coded, None, library)
    found = all_rows(matrix)
    assert torch.equal(found, expected)
    state = layer.weight.quant_state
    outer = (state.state2.absmax.nbytes, state.state2.code.nbytes) if nested else ()
    assert matrix.nbytes <= 1.05 * sum((layer.weight.nbytes, state.absmax.nbytes, *outer)) + 128
    x = torch.randn(5, 640)
    torch.testing.assert_close(matrix.multiply(x), x @ found.t(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_our_own_nf4_has_bitsandbytes_codes_and_scales(dtype: torch.dtype) -> None:
    torch.manual_seed(9)
    levels = functional.get_4bit_type("nf4", device="cpu")
    weight = torch.randn(700, 640) * torch.rand(700, 1)
    weight[3] = 0.0
    weight[5, :15], weight[5, 15:] = (levels[:-1] + levels[1:]) / 2, 1.0  # midpoints belong to the level below
    weight[6, ::2] = -weight[6, ::2].abs().max()
    weight = weight.to(dtype)
    packed, state = functional.quantize_4bit(weight.float(), compress_statistics=True, quant_type="nf4")
    layer = nn.Module()
    layer.in_features, layer.out_features = 640, 700
    layer.weight = nn.Parameter(packed, requires_grad=False)
    layer.weight.quant_state = state
    expected, calls = coded_four_bits(layer), list[int]()
    found = quantise_nf4(weight, lambda: calls.append(1))
    assert expected is not None
    assert torch.equal(found.packed, expected.packed)
    assert torch.equal(found.scale, expected.scale)
    assert (found.shape, found.grid.run, found.grid.scales) == (expected.shape, expected.grid.run, expected.grid.scales)
    for table, other in ((found.grid.levels, expected.grid.levels), (found.grid.nested, expected.grid.nested)):
        assert table is not None
        assert other is not None
        assert torch.equal(table, other)
    assert calls


def test_blocks_that_cross_the_ends_of_rows_are_left_to_bitsandbytes() -> None:
    assert four_bits("nf4", True, columns=96)[1] is None
