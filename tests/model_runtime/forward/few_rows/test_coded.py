"""Block-quantised matrices on a device: the kernels' source itself, run on the CPU, and its twin, for every format."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model_runtime.forward.few_rows.coded import coded_linear
from model_runtime.forward.few_rows.coded.coded_linear import CodedLinear
from model_runtime.forward.few_rows.coded.device_layers import DeviceLayers
from model_runtime.forward.few_rows.coded.operations import CodedOperations, TorchCodedOperations
from model_runtime.forward.few_rows.coded.planes import CodedPlanes, planes_of
from model_runtime.forward.few_rows.nvrtc import NvrtcUnavailable
from model_runtime.weights.coded.codebooks import CODEBOOKS
from model_runtime.weights.coded.coded_rows import Coded, Grid, Kind, Scales
from model_runtime.weights.coded.eights import CodedEights, coded_fp8, coded_llm_int8
from model_runtime.weights.coded.ggml_formats import coded_ggml
from model_runtime.weights.coded.integers import coded_integers
from model_runtime.weights.coded.nf4 import quantise_nf4
from model_runtime.weights.coded.numbers import dequantised_rows
from model_runtime.weights.stored_weights import dense
from tests.model_runtime.forward.few_rows.kernels_on_a_cpu import OnACpu
from tests.model_runtime.tiny_blocks import HALVES, random_blocks
from tests.model_runtime.weights.test_coded import stored

ROWS, COLUMNS = 37, 512  # rows that fill no block of the grid
CPU = torch.device("cpu")


def integers(bits: int, dtype: torch.dtype, has_zeros: bool, has_order: bool = False) -> Coded:
    """As GPTQ, AWQ and compressed-tensors have them, in groups of 96 columns: runs of 32."""
    codes = torch.randint(0, 2**bits, (ROWS, COLUMNS), dtype=torch.uint8)
    scale = torch.rand(ROWS, -(-COLUMNS // 96)).add_(0.5).to(dtype)
    zero = torch.randint(0, 2**bits, scale.shape, dtype=torch.uint8) if has_zeros else None
    order = torch.randperm(COLUMNS).int() if has_order else None
    return coded_integers(lambda start, end: codes[start:end], bits, scale, zero, 96, (ROWS, COLUMNS), order)


def fp8(block: tuple[int, int], dtype: torch.dtype) -> Coded:
    codes = torch.randn(ROWS, COLUMNS).to(torch.float8_e4m3fn)
    shape = -(-ROWS // block[0]), -(-COLUMNS // block[1])
    if dtype == torch.uint8:  # exponents
        return coded_fp8(codes, torch.randint(120, 130, shape, dtype=dtype), block)
    return coded_fp8(codes, torch.rand(shape).add_(0.5).to(dtype), block)


def int8() -> Coded:
    return coded_llm_int8(torch.randint(-127, 128, (ROWS, COLUMNS), dtype=torch.int8), torch.rand(ROWS) + 0.5)


OTHERS: Mapping[str, Callable[[], Coded]] = {
    "GPTQ": lambda: integers(4, torch.float16, has_zeros=False, has_order=True),
    "AWQ": lambda: integers(4, torch.float16, has_zeros=True),
    "W4A16": lambda: integers(4, torch.bfloat16, has_zeros=True),
    "W4A16, float32": lambda: integers(4, torch.float32, has_zeros=False),
    "W8A16": lambda: integers(8, torch.float32, has_zeros=True),
    "W8A16, bfloat16": lambda: integers(8, torch.bfloat16, has_zeros=True, has_order=True),
    "W8A16, float16": lambda: integers(8, torch.float16, has_zeros=False),
    "FP8": lambda: fp8((32, 128), torch.float32),
    "FP8, bfloat16": lambda: fp8((32, 32), torch.bfloat16),
    "FP8, float16": lambda: fp8((1, COLUMNS), torch.float16),
    "FP8, one scale": lambda: fp8((ROWS, COLUMNS), torch.float32),
    "MXFP8": lambda: fp8((1, 32), torch.uint8),
    "LLM.int8": int8,
    "NF4": lambda: quantise_nf4(torch.randn(ROWS, COLUMNS)),
}
FORMATS = (*HALVES, *OTHERS)


def made(name: str) -> tuple[Coded, torch.Tensor]:
    """A matrix, and its weights by other means."""
    torch.manual_seed(3)
    if name in HALVES:
        blocks = stored(name, random_blocks(name, ROWS, COLUMNS, 3))
        assert not isinstance(blocks, torch.Tensor)
        matrix = coded_ggml(blocks)
        assert matrix is not None
        return matrix, dense(blocks)
    coded = OTHERS[name]()
    if name == "NF4":  # codes, levels and nested scales by bitsandbytes' formula
        part, grid = coded.rows(0, ROWS), coded.grid
        assert grid.levels is not None
        assert grid.nested is not None
        factors = grid.nested[257 + torch.arange(part.scale.numel()) // 256].view(part.scale.shape)
        scales = grid.nested[part.scale.int()] * factors + grid.nested[256]
        return coded, grid.levels[part.codes.int()] * scales.repeat_interleave(grid.run, 1)
    return coded, dequantised_rows(coded, torch.float32)


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> CodedOperations:
    """The source of the kernels. Each form that a test uses is compiled once, in half a second."""
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    folder: Path = tmp_path_factory.mktemp("kernels")
    return OnACpu(folder)


# Codebooks are levels, whose form IQ4_XS has too.
CHECKED = [pytest.param(name, marks=pytest.mark.long if name in CODEBOOKS else ()) for name in FORMATS]
# Forms that reach most of the source are always compiled, the others in long tests.
BY_KERNELS = [
    pytest.param(name, marks=() if name in ("Q5_K", "NF4", "W4A16") else pytest.mark.long, id=f"{name}, kernels")
    for name in FORMATS
]


def gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def check_weights(name: str, operations: CodedOperations) -> None:
    matrix, weights = made(name)
    planes = planes_of(matrix, CPU)
    if planes.order is not None:
        weights = weights.index_select(1, planes.order)
    found = operations.dequantise(planes, 5, ROWS, torch.float32)
    # A zero's product with the scale is rounded before it is taken off.
    torch.testing.assert_close(found, weights[5:], rtol=1e-6, atol=1e-7 * float(weights.abs().max()))


def check_products(name: str, operations: CodedOperations) -> None:
    matrix, weights = made(name)
    bias = torch.randn(ROWS)
    layer = CodedLinear(planes_of(matrix, CPU), bias, operations)
    for tokens in (1, 11, 65):
        x = torch.randn(1, tokens, COLUMNS)
        assert gap(layer(x), x @ weights.t() + bias) < 1e-5


@pytest.mark.parametrize("name", BY_KERNELS)
def test_the_kernels_source_computes_with_the_weights_of_the_file(
    name: str, kernels: CodedOperations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coded_linear, "SCRATCH_BYTES", 10 * COLUMNS * 4)  # several blocks, the last one shorter
    check_weights(name, kernels)
    check_products(name, kernels)


@pytest.mark.parametrize("name", FORMATS)
def test_the_twin_computes_with_the_weights_of_the_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coded_linear, "SCRATCH_BYTES", 10 * COLUMNS * 4)
    check_weights(name, TorchCodedOperations())
    check_products(name, TorchCodedOperations())


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.long)])
def test_inputs_of_16_bits_are_added_in_float32_and_rounded_once(dtype: torch.dtype, kernels: CodedOperations) -> None:
    matrix, weights = made("Q6_K")
    x = torch.randn(11, COLUMNS).to(dtype)
    layer = CodedLinear(planes_of(matrix, CPU), None, kernels)
    found, expected = layer(x), (x.float() @ weights.t()).to(dtype)
    assert found.dtype == dtype
    assert gap(found, expected) < (2e-4 if dtype == torch.float16 else 1e-3)


@pytest.mark.parametrize("is_twin", [True, False], ids=["twin", "kernels"])
def test_every_code_of_e4m3_is_the_number_that_torch_makes_of_it(is_twin: bool, kernels: CodedOperations) -> None:
    """Two codes of 256 are no numbers, and neither is a product with them."""
    codes = torch.arange(256, dtype=torch.uint8).repeat(2, 1)
    grid = Grid(Kind.FP8, Scales.FLOATS, 256)
    planes = planes_of(CodedEights(codes, torch.tensor([[1.0], [0.5]]), None, 1, grid), CPU)
    operations = TorchCodedOperations() if is_twin else kernels
    found = operations.dequantise(planes, 0, 2, torch.float32)
    one = codes[0].view(torch.float8_e4m3fn).float()
    assert int(one.isnan().sum()) == 2
    torch.testing.assert_close(found, torch.stack([one, one / 2]), rtol=0, atol=0, equal_nan=True)
    assert bool(operations.multiply(planes, torch.ones(1, 256), None).isnan().all())


def shifted(tensor: torch.Tensor) -> torch.Tensor:
    """Every entry is its neighbour's."""
    return tensor.roll(1, -1)


def mutations(planes: CodedPlanes) -> Mapping[str, CodedPlanes]:
    """Whatever can be dropped, taken from another group or shifted."""
    found = {}
    for name, tensor in planes.tensors.items():
        found[f"{name} of the neighbour"] = replace(planes, tensors={**planes.tensors, name: shifted(tensor)})
        if name in ("minimum", "zero", "high", "super_minimum"):
            zeros = {**planes.tensors, name: torch.zeros_like(tensor)}
            found[f"{name} dropped"] = replace(planes, tensors=zeros)
    if planes.grid.offset:
        found["offset dropped"] = replace(planes, grid=replace(planes.grid, offset=0))
    return found


@pytest.mark.parametrize("name", CHECKED)
def test_what_is_dropped_or_shifted_keeps_a_format_from_running(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check at load. A scale that all columns of a row share has no neighbour."""
    shares_scales = planes_of(made(name)[0], CPU).tensors["scale"].shape[1] == 1
    matrix, weights = made(name)
    for what, broken in mutations(planes_of(matrix, CPU)).items():
        if what.startswith("scale") and shares_scales:
            continue
        monkeypatch.setattr(
            "model_runtime.forward.few_rows.coded.device_layers.planes_of", lambda *_, broken=broken: broken
        )
        layers = DeviceLayers(CPU, torch.bfloat16, TorchCodedOperations())
        assert layers.linear(name, matrix, None, lambda start, end: weights[start:end]) is None, what
        assert "wrong on this device" in layers.why_not[name]


@pytest.mark.parametrize("name", CHECKED)
def test_a_format_that_agrees_runs(name: str) -> None:
    matrix, weights = made(name)
    layers = DeviceLayers(CPU, torch.bfloat16, TorchCodedOperations())
    assert layers.linear(name, matrix, torch.ones(ROWS), lambda start, end: weights[start:end]) is not None
    assert layers.made == 1
    assert layers.notes == ()


@pytest.mark.parametrize("factor", [None, 22.625])
@pytest.mark.parametrize("is_twin", [True, False], ids=["twin", "kernels"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "Q5_K" else pytest.mark.long) for name in (*HALVES, "AWQ")]
)
def test_rows_that_are_looked_up_are_those_of_the_file(
    name: str, is_twin: bool, factor: float | None, kernels: CodedOperations
) -> None:
    """Beside a head that has the same matrix."""
    matrix, weights = made(name)
    layers = DeviceLayers(CPU, torch.bfloat16, TorchCodedOperations() if is_twin else kernels)
    ends = layers.ends(name, matrix, lambda start, end: weights[start:end], has_head=True, factor=factor)
    assert ends is not None
    table, head = ends
    assert head is not None
    assert (table.hidden_bytes, head.hidden_bytes) == (0, planes_of(matrix, CPU).nbytes)
    ids = torch.tensor([[ROWS - 1, 0, 5], [5, 17, 17]])
    expected = weights[ids].bfloat16()
    assert torch.equal(table(ids), expected if factor is None else expected * torch.tensor(factor).bfloat16())
    x = torch.randn(3, COLUMNS).bfloat16()
    assert gap(head(x), x.float() @ weights.t()) < 8e-3
    alone = layers.ends(name, matrix, lambda start, end: weights[start:end], has_head=False, factor=factor)
    assert alone is not None
    assert alone[1] is None
    assert alone[0].hidden_bytes == head.hidden_bytes
    table.release()
    with pytest.raises(RuntimeError, match="unloaded"):
        table(ids)


class Misplaced(TorchCodedOperations):
    """De-quantises the neighbours of the rows that it is asked for."""

    def dequantise(self, planes: CodedPlanes, start: int, end: int, dtype: torch.dtype) -> torch.Tensor:
        return super().dequantise(planes, start, end, dtype).roll(1, 0)


@pytest.mark.parametrize(
    ("name", "operations", "reason"),
    [
        ("Q6_K", Misplaced(), "wrong on this device"),
        ("NF4", TorchCodedOperations(), "rows cannot be looked up"),
        ("GPTQ", TorchCodedOperations(), "rows cannot be looked up"),
    ],
)
def test_a_table_that_is_wrong_or_cannot_be_looked_up_is_left_to_numbers(
    name: str, operations: CodedOperations, reason: str
) -> None:
    matrix, weights = made(name)
    layers = DeviceLayers(CPU, torch.bfloat16, operations)
    assert layers.ends(name, matrix, lambda start, end: weights[start:end], has_head=False, factor=None) is None
    assert reason in layers.why_not[name]


def test_a_layer_takes_no_memory_but_that_of_its_planes_and_bias_on_its_device() -> None:
    """On a device that has no numbers, so that none of them is the CPU's own."""
    meta = torch.device("meta")
    planes = planes_of(made("Q4_K")[0], meta)
    layer = CodedLinear(planes, torch.empty(ROWS, device=meta), TorchCodedOperations())
    assert layer.weight.device == meta
    assert layer.weight.shape == (ROWS, COLUMNS)
    assert layer.weight.untyped_storage().nbytes() == 4
    assert layer.hidden_bytes == planes.nbytes + ROWS * 4
    layer.release()
    assert (layer.planes, layer.bias, layer.hidden_bytes) == (None, None, 0)


class Uncompiled(TorchCodedOperations):
    def multiply(self, planes: CodedPlanes, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        raise NvrtcUnavailable("there is no libnvrtc.so.12")


def test_a_format_that_cannot_be_compiled_is_named_once_and_left_to_numbers() -> None:
    matrix, weights = made("Q4_K")
    layers = DeviceLayers(CPU, torch.bfloat16, Uncompiled())
    for _ in range(2):
        assert layers.linear("Q4_K", matrix, None, lambda start, end: weights[start:end]) is None
    assert layers.notes == (
        "Weights of Q4_K run de-quantised: our own kernels cannot run them here (there is no libnvrtc.so.12).",
    )


@pytest.mark.parametrize("name", FORMATS)
def test_a_matrix_takes_the_bits_of_its_codes_and_scales(name: str) -> None:
    matrix, _ = made(name)
    planes = planes_of(matrix, CPU)
    part = matrix.rows(0, 1)
    bits = planes.form.low + planes.form.high
    others = (part.scale, part.minimum, part.zero, part.super_scale, part.super_minimum)
    tables = sum(planes.tensors[table].nbytes for table in ("levels", "nested") if table in planes.tensors)
    expected = ROWS * (COLUMNS * bits // 8 + sum(one.nbytes for one in others if one is not None)) + tables
    assert planes.nbytes == expected
