"""Activations as whole numbers: every kind's products against the plain formula, the same bits beside any rows."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from bitsandbytes import functional

from model_runtime.weights.coded.coded_rows import Grid, Kind, Scales
from model_runtime.weights.coded.four_bits import CodedFourBits
from model_runtime.weights.ggml_blocks import GgmlBlocks
from model_runtime.weights.native_matrix import NativeMatrix
from model_runtime.weights.q4_blocks import read_q4_0, read_q4_1, read_q8_0
from model_runtime.weights.stored_weights import Stored
from tests.model_runtime.tiny_blocks import HALVES, block_bytes, random_blocks, values

FLOATS_ONLY = ("IQ1_M", "IQ2_XS", "IQ2_S")  # whose scales are for 16 columns, and whose levels are no whole numbers
KINDS = [kind for kind in HALVES if kind not in FLOATS_ONLY]
READ = {"Q4_0": read_q4_0, "Q4_1": read_q4_1, "Q8_0": read_q8_0}
LARGEST = {1: 127, 2: 16_319}  # codes of one byte, of two
# Where a block has the codes of its weights, of the kinds whose codes have no sign.
CODES = {
    "Q2_K": slice(16, 80),
    "Q3_K": slice(0, 96),
    "Q4_0": slice(2, 18),
    "Q4_1": slice(4, 20),
    "Q4_K": slice(16, 144),
    "Q5_0": slice(2, 22),
    "Q5_1": slice(4, 24),
    "Q5_K": slice(16, 176),
    "Q6_K": slice(0, 192),
}
ROWS, COLUMNS, RUN = 70, 512, 32  # rows that fill no pair of tiles, two super-blocks; columns that share a scale


def stored(kind: str, rows: np.ndarray) -> Stored:
    """A file's bytes as the loader keeps them."""
    tensor = torch.from_numpy(np.ascontiguousarray(rows))
    return READ[kind](tensor) if kind in READ else GgmlBlocks(tensor, kind)


def taking_bytes(kind: str, library: ctypes.CDLL, count: int, bias: torch.Tensor | None = None) -> NativeMatrix:
    matrix = NativeMatrix(stored(kind, random_blocks(kind, ROWS, COLUMNS, 5)), bias, library)
    assert matrix.take_bytes(count)
    return matrix


def activations() -> torch.Tensor:
    """27 rows: some with the largest codes everywhere, of one sign and of both, one of zeros, one with some."""
    x = torch.randn(27, COLUMNS, generator=torch.Generator().manual_seed(6))
    x[3], x[4], x[5], x[6, 64:96] = 1.0, torch.tensor([-2.0, 2.0]).repeat(COLUMNS // 2), 0.0, 0.0
    return x


def rounded(x: torch.Tensor, count: int) -> np.ndarray:
    """The formula: codes up to `LARGEST` times a scale for 32 columns, float64 `[M, K]`."""
    largest = np.float32(LARGEST[count])
    runs = x.numpy().reshape(x.shape[0], -1, RUN)
    most = np.abs(runs).max(-1, keepdims=True)
    inverse = np.where(most > 0, largest / np.where(most > 0, most, 1), np.float32(0)).astype(np.float32)
    codes = np.rint(runs * inverse)
    numbers: np.ndarray = (codes.astype(np.float64) * (most / largest)).reshape(x.shape)
    return numbers


@pytest.mark.parametrize("kind", FLOATS_ONLY)
def test_other_kinds_keep_float32(kind: str, own_library: ctypes.CDLL) -> None:
    matrix = NativeMatrix(stored(kind, random_blocks(kind, ROWS, COLUMNS, 5)), None, own_library)
    expected = matrix.multiply(activations())
    assert not matrix.take_bytes(1)
    assert not matrix.take_bytes(2)
    assert torch.equal(matrix.multiply(activations()), expected)


@pytest.mark.parametrize("count", LARGEST)
@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_of_the_rounded_activations(kind: str, count: int, library: ctypes.CDLL) -> None:
    """A sum that is wrong by one product of two codes would be outside of the tolerance."""
    x, bias = activations(), torch.randn(ROWS, generator=torch.Generator().manual_seed(7))
    matrix = taking_bytes(kind, library, count, bias)
    weights = values(kind, random_blocks(kind, ROWS, COLUMNS, 5)).astype(np.float64)
    expected = rounded(x, count) @ weights.T + bias.double().numpy()
    found = matrix.multiply(x)
    np.testing.assert_allclose(found.double().numpy(), expected, rtol=0, atol=3e-5)
    for cuts in ([1] * 27, [2, 3, 4, 5, 13], [12, 12, 3], [6, 7, 8, 6], [9, 10, 8], [11, 16]):
        assert torch.equal(torch.cat([matrix.multiply(part) for part in x.split(cuts)]), found)


@pytest.mark.parametrize("count", LARGEST)
@pytest.mark.parametrize("kind", CODES)
def test_the_largest_codes_times_the_largest_activations(kind: str, count: int, library: ctypes.CDLL) -> None:
    """Sums of products that are held in sixteen bits for a while must not leave them."""
    rows = random_blocks(kind, ROWS, COLUMNS, 5)
    rows.reshape(ROWS, -1, block_bytes(kind))[..., CODES[kind]] = 255
    matrix, x = NativeMatrix(stored(kind, rows), None, library), activations()
    assert matrix.take_bytes(count)
    weights = values(kind, rows).astype(np.float64)
    within = 1e-6 * np.abs(rounded(x, count)) @ np.abs(weights).T + 3e-5
    for part in (1, 2, 4, 27):
        found = torch.cat([matrix.multiply(some) for some in x.split(part)]).double().numpy()
        assert (np.abs(found - rounded(x, count) @ weights.T) <= within).all()


@pytest.mark.parametrize("count", LARGEST)
@pytest.mark.parametrize("kind", KINDS)
def test_registers_of_every_width_give_the_same_bits(kind: str, count: int, libraries: dict[str, ctypes.CDLL]) -> None:
    """But for processors that cannot add to a product without rounding it first: these round sums differently."""
    x = activations()
    products = {name: taking_bytes(kind, library, count).multiply(x) for name, library in libraries.items()}
    assert torch.equal(products["AVX2"], products["this one"])
    torch.testing.assert_close(products["SSE"], products["this one"], rtol=0, atol=3e-5)


@pytest.mark.parametrize("count", LARGEST)
@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q8_0"])
def test_more_rows_than_share_a_chunk_of_codes(kind: str, count: int, library: ctypes.CDLL) -> None:
    """One loop each: scales of 32 columns, of sixteen, and codes with a sign."""
    matrix, x = taking_bytes(kind, library, count), torch.randn(203, COLUMNS)
    alone = torch.cat([matrix.multiply(row[None]) for row in x])
    for rows in (203, 97, 96, 16, 11, 2):
        assert torch.equal(matrix.multiply(x[:rows]), alone[:rows])
    assert matrix.multiply(x[:0]).shape == (0, ROWS)


@pytest.mark.parametrize("count", LARGEST)
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_dropped_or_shifted_shows_in_the_products(kind: str, count: int, own_library: ctypes.CDLL) -> None:
    """The comparisons above would find it: each array of a matrix matters, and so does each entry's place."""
    matrix, x = taking_bytes(kind, own_library, count), activations()
    expected = matrix.multiply(x)
    is_float = {matrix.struct.levels}  # the table that multiplies activations that are floats
    for tensor in (tensor for tensor in matrix.tensors if tensor.data_ptr() not in is_float):
        right = tensor.clone()
        for change in (torch.zeros_like, shifted):
            tensor.copy_(change(right))
            assert (matrix.multiply(x) - expected).abs().max() > 3e-4
        tensor.copy_(right)
    for name in ("offset", "shift"):
        matrix = taking_bytes(kind, own_library, count)
        setattr(matrix.struct, name, getattr(matrix.struct, name) + 1)
        is_unused = name == "offset" and (matrix.struct.minimum is not None or kind == "Q2_K")
        assert torch.equal(matrix.multiply(x), expected) == is_unused


@pytest.mark.parametrize("kind", KINDS)
def test_two_bytes_are_as_near_as_half_a_code(kind: str, own_library: ctypes.CDLL) -> None:
    """To the float64 product of what was never rounded, and far nearer than one byte."""
    x, weights = activations(), values(kind, random_blocks(kind, ROWS, COLUMNS, 5)).astype(np.float64)
    exact = x.double().numpy() @ weights.T
    off = {}
    for count, largest in LARGEST.items():
        off[count] = np.abs(taking_bytes(kind, own_library, count).multiply(x).double().numpy() - exact)
        half = np.abs(x.double().numpy()).reshape(len(x), -1, RUN).max(-1).repeat(RUN, 1) / largest / 2
        assert (off[count] <= half @ np.abs(weights).T * 1.001 + 3e-5).all()
    assert off[2].mean() * 50 < off[1].mean()


def shifted(tensor: torch.Tensor) -> torch.Tensor:
    """Each entry where the next one should be: of the next run of columns, or of the table."""
    return tensor.roll(1, 1 if tensor.ndim > 1 else 0)


@pytest.mark.parametrize("count", LARGEST)
def test_a_number_that_is_none_or_infinite_is_not_lost(count: int, library: ctypes.CDLL) -> None:
    matrix, x = taking_bytes("Q4_1", library, count), activations()
    right = matrix.multiply(x)
    x[1, 40], x[2, 511] = torch.nan, torch.inf
    found = matrix.multiply(x)
    assert not found[1:3].isfinite().any()
    assert torch.equal(found[3:], right[3:])
    tiny = torch.full((1, COLUMNS), 1e-38)
    assert torch.equal(matrix.multiply(tiny), torch.zeros(1, ROWS))


def fractions(table: torch.Tensor, library: ctypes.CDLL) -> tuple[NativeMatrix, torch.Tensor]:
    """A matrix of levels that are no whole numbers, and its weights."""
    random = torch.Generator().manual_seed(8)
    packed = torch.randint(0, 256, (ROWS * COLUMNS // 2,), generator=random, dtype=torch.uint8)
    scale = torch.rand(ROWS * COLUMNS // 64, generator=random)
    grid = Grid(Kind.LEVELS, Scales.FLOATS, 64, 0, table)
    coded = CodedFourBits(packed, scale, grid, (ROWS, COLUMNS))
    weights = table[coded.rows(0, ROWS).codes.long()] * scale.view(ROWS, -1).repeat_interleave(64, 1)
    return NativeMatrix(coded, None, library), weights


SQUARES = torch.linspace(-1, 1, 16).sign() * torch.linspace(-1, 1, 16).square()
TABLES = {
    "nf4": functional.get_4bit_type("nf4", device="cpu").float(),
    "fp4": functional.get_4bit_type("fp4", device="cpu").float(),
    "squares": SQUARES,
    "small squares": 0.35 * SQUARES,
    "large squares": 200.5 * SQUARES,
}


@pytest.mark.parametrize("name", TABLES)
def test_levels_that_are_no_whole_numbers_are_rounded_to_bytes(name: str, libraries: dict[str, ctypes.CDLL]) -> None:
    """By 0.4% of the largest, as an activation is; and 0 stays 0."""
    table, x = TABLES[name], activations()
    products = list[torch.Tensor]()
    for library in ("this one", "AVX2"):
        matrix, weights = fractions(table, libraries[library])
        torch.testing.assert_close(matrix.multiply(x), x @ weights.t(), rtol=0, atol=1e-4 * float(table.max()))
        assert not matrix.has_level_unit
        assert matrix.take_bytes()
        assert matrix.has_level_unit
        products.append(matrix.multiply(x))
    held = matrix.multiply(torch.eye(COLUMNS)).t().double()  # a 1 is no more rounded than a 0
    assert float(((held - weights) / weights.abs().amax()).abs().max()) < 0.004
    assert torch.equal(held[weights == 0], torch.zeros_like(held[weights == 0]))
    assert held[weights != 0].sign().equal(weights[weights != 0].double().sign())
    expected = torch.from_numpy(rounded(x, 1)) @ held.t()
    torch.testing.assert_close(products[0].double(), expected, rtol=0, atol=1e-4 * float(table.max()))
    assert torch.equal(products[1], products[0])
    for cuts in ([1] * 27, [2, 3, 4, 5, 13], [6, 7, 8, 6], [11, 16]):
        assert torch.equal(torch.cat([matrix.multiply(part) for part in x.split(cuts)]), products[1])


def test_matrices_without_codes_keep_float32(own_library: ctypes.CDLL) -> None:
    for held in (torch.ones(64, 64), torch.full((64, 64), 1e-7).bfloat16()):
        matrix = NativeMatrix(held, None, own_library)
        x = torch.randn(3, 64)
        before = matrix.multiply(x)
        assert not matrix.take_bytes(1)
        assert not matrix.take_bytes(2)
        assert torch.equal(matrix.multiply(x), before)
