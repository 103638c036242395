"""Checks and times products with block-quantised matrices of every form that the kernels are compiled for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch.nn import functional

from benchmarks.gpu.bench import Bench
from model_runtime.forward.few_rows.coded.device_layers import DeviceLayers, device_layers
from model_runtime.forward.few_rows.coded.operations import TorchCodedOperations
from model_runtime.forward.few_rows.coded.planes import planes_of
from model_runtime.weights.coded.coded_rows import BLOCK, SCALE_DTYPES, CodedRows, Grid, Kind, Scales
from model_runtime.weights.coded.ggml_formats import FORMATS

_TOKENS = (1, 8, 64, 512)
_BITS = {Kind.Q2: 2, Kind.Q3: 3, Kind.Q5: 5, Kind.Q6: 6, Kind.Q8: 8, Kind.FP8: 8, Kind.INT8: 8}  # of others 4
_RUNS, _CALLS = 5, 20  # calls are timed together: starting a kernel takes longer than it runs


@dataclass(frozen=True, slots=True)
class CodedMatrix:
    """A `Coded` whose rows are in memory."""

    grid: Grid
    all_rows: CodedRows

    @property
    def shape(self) -> tuple[int, int]:
        """See `Coded`."""
        return self.all_rows.codes.shape[0], self.all_rows.codes.shape[1]

    def rows(self, start: int, end: int) -> CodedRows:
        """See `Coded`."""
        names = ("codes", "scale", "minimum", "super_scale", "super_minimum", "zero")
        parts = {name: getattr(self.all_rows, name) for name in names}
        return CodedRows(**{name: None if part is None else part[start:end] for name, part in parts.items()})


def random_matrix(grid: Grid, rows: int, columns: int, has_minimums: bool, has_zeros: bool) -> CodedMatrix:
    """Random codes, scales and, where asked for, minimums and zeros."""
    generator = torch.Generator().manual_seed(5)
    has_blocks = grid.scales in (Scales.SUPER, Scales.PAIRS)

    def octets(width: int, start: int, end: int) -> torch.Tensor:
        return torch.randint(start, end, (rows, width), generator=generator, dtype=torch.uint8)

    def entries() -> torch.Tensor:
        dtype = SCALE_DTYPES[grid.scales]
        if dtype.is_floating_point:
            return torch.rand((rows, grid.runs(columns)), generator=generator).add_(0.5).to(dtype)
        start, end = (124, 128) if grid.scales is Scales.POWERS else (1, 64)
        return octets(grid.runs(columns), start, end).view(dtype)

    def halves() -> torch.Tensor | None:
        if not has_blocks:
            return None
        return torch.rand((rows, columns // BLOCK), generator=generator).add_(0.5).half()

    codes = octets(columns, 0, 2 ** _BITS.get(grid.kind, 4))
    if grid.kind is Kind.FP8:
        codes &= 0xF7  # never all ones, which are no number
    zero = octets(grid.runs(columns), 0, 16).view(torch.int8) if has_zeros else None
    minimum = entries() if has_minimums else None
    is_signed = grid.kind in (Kind.Q8, Kind.INT8)
    return CodedMatrix(
        grid,
        CodedRows(codes.view(torch.int8) if is_signed else codes, entries(), minimum, halves(), halves(), zero),
    )


def forms(rows: int, columns: int) -> dict[str, CodedMatrix]:
    """A matrix of each form, by the name of a format that has it."""
    nf4, whole_row = torch.linspace(-1, 1, 16), 1 << (columns - 1).bit_length()
    table = torch.cat([torch.linspace(-1, 1, 256), torch.tensor([0.1]), torch.full((rows * columns // 64,), 0.3)])
    grids = {
        "Q4_0": Grid(Kind.Q4, Scales.HALVES, 32, 8),
        "Q4_1": Grid(Kind.Q4, Scales.HALVES, 32),
        "Q8_0": Grid(Kind.Q8, Scales.HALVES, 32),
        "AWQ": Grid(Kind.Q4, Scales.HALVES, 128),
        "W4A16": Grid(Kind.Q4, Scales.BRAINS, 128, 8),
        "W4A16 float32": Grid(Kind.Q4, Scales.FLOATS, 128, 8),
        "W8A16": Grid(Kind.Q8, Scales.BRAINS, 128),
        "W8A16 float32": Grid(Kind.Q8, Scales.FLOATS, 128),
        "FP8": Grid(Kind.FP8, Scales.FLOATS, 128),
        "FP8 bfloat16": Grid(Kind.FP8, Scales.BRAINS, whole_row),
        "FP8 float16": Grid(Kind.FP8, Scales.HALVES, whole_row),
        "MXFP8": Grid(Kind.FP8, Scales.POWERS, 32),
        "LLM.int8": Grid(Kind.INT8, Scales.FLOATS, whole_row),
        "NF4": Grid(Kind.LEVELS, Scales.NESTED, 64, 0, nf4, table),
    } | {name: one.grid for name, one in FORMATS.items() if not name.startswith(("IQ1", "IQ2", "IQ3"))}
    minimums = {"Q4_1", "Q5_1", "Q4_K", "Q5_K"}
    zeros = {"AWQ", "W8A16"}
    return {name: random_matrix(grid, rows, columns, name in minimums, name in zeros) for name, grid in grids.items()}


def coded(bench: Bench) -> None:
    """Agreement with the twin on the CPU, and microseconds a product, of each form; beside them torch's own product in
    16 bits."""
    rows, columns = (128, 512) if bench.is_tiny else (4096, 4096)
    made = device_layers(bench.device, bench.dtype)
    twin = TorchCodedOperations()
    layers = made or DeviceLayers(bench.device, bench.dtype, twin)
    if made is None and bench.device.type == "cuda":
        bench.note("coded", "skipped: the kernels do not run on this GPU")
        return
    for name, matrix in forms(rows, columns).items():
        planes = planes_of(matrix, torch.device("cpu"))
        layer = layers.linear(
            name,
            matrix,
            None,
            lambda start, end, planes=planes: twin.dequantise(planes, start, end, torch.float32),
        )
        bench.check(
            f"coded {name}: products equal those of its weights", layer is not None, layers.why_not.get(name, "")
        )
        if layer is not None:
            _time(bench, f"coded_{name}", columns, layer)
    weights = torch.randn((rows, columns), device=bench.device).to(bench.dtype)
    _time(bench, "coded_none", columns, lambda x: functional.linear(x, weights))


@torch.inference_mode()
def _time(bench: Bench, name: str, columns: int, product: Callable[[torch.Tensor], torch.Tensor]) -> None:
    runs, calls = (1, 1) if bench.is_tiny else (_RUNS, _CALLS)
    for tokens in _TOKENS:
        x = torch.randn((tokens, columns), device=bench.device).to(bench.dtype)
        product(x)
        seconds = [bench.timed_s(lambda x=x: [product(x) for _ in range(calls)]) / calls for _ in range(runs)]
        bench.figure(f"{name}_{tokens}_us", median(seconds) * 1e6)
