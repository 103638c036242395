"""Products of few rows with 4-bit matrices: which layers the kernel covers, and that it computes what they compute."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from model_runtime.forward.arena.varlen_reference import REFERENCE
from model_runtime.forward.few_rows.decode_attention import DecodeAttention, agrees, decode_attention_kernel
from model_runtime.forward.few_rows.four_bit_product import _pairs, covers
from model_runtime.forward.few_rows.kernels import MOST_ROWS, few_rows_kernels
from model_runtime.forward.few_rows.operations import CudaOperations, TorchOperations
from model_runtime.forward.few_rows.patched_layers import speed_up
from model_runtime.forward.few_rows.rotary import RotaryPlacing

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def four_bit(
    rows: int, columns: int, device: str = "cpu", dtype: torch.dtype = torch.bfloat16, quant_type: str = "nf4"
) -> nn.Module:
    bnb = pytest.importorskip("bitsandbytes")
    nested = quant_type == "nf4"
    layer = bnb.nn.Linear4bit(columns, rows, False, dtype, nested, quant_type, device="meta")
    weight = torch.randn((rows, columns), generator=torch.Generator().manual_seed(2)).to(dtype)
    layer.weight = bnb.nn.Params4bit(
        weight, requires_grad=False, compress_statistics=nested, quant_type=quant_type, module=layer
    ).to(device)
    return layer


def test_only_layouts_that_the_kernel_reads_are_covered() -> None:
    assert covers(four_bit(32, 512))
    assert not covers(four_bit(32, 320))  # not a multiple of 256 columns
    assert not covers(four_bit(24, 512))  # not a multiple of 16 rows
    assert not covers(four_bit(32, 512, dtype=torch.float32))
    assert not covers(nn.Linear(512, 32))


def test_a_byte_of_codes_becomes_its_two_numbers() -> None:
    code = torch.linspace(-1, 1, 16)

    found = _pairs(code).view(torch.bfloat16).view(256, 2)

    assert found.dtype == torch.bfloat16
    for byte in (0, 1, 16, 0x3C, 255):
        assert found[byte].tolist() == code[[byte >> 4, byte & 15]].bfloat16().tolist()


def test_without_cuda_nothing_changes() -> None:
    model = nn.Sequential(four_bit(32, 512))

    assert speed_up(model, torch.device("cpu")) is None
    assert "forward" not in vars(model[0])


@needs_cuda
@pytest.mark.parametrize("tokens", [1, 3, 8, 13, 33, MOST_ROWS, MOST_ROWS + 1])
def test_products_equal_those_of_bitsandbytes(tokens: int) -> None:
    layer = four_bit(48, 768, "cuda")
    x = torch.randn(tokens, 768, device="cuda", dtype=torch.bfloat16)
    expected = layer(x).float()

    undo = speed_up(nn.Sequential(layer), torch.device("cuda"))

    assert undo is not None
    assert float((layer(x).float() - expected).norm() / expected.norm()) <= 0.02
    undo()
    assert "forward" not in vars(layer)


def gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def rms_norm(width: int) -> nn.Module:
    module = nn.Module()
    weight = torch.rand(width, generator=torch.Generator().manual_seed(4)).add(0.5)
    module.weight = nn.Parameter(weight.to("cuda", torch.bfloat16), requires_grad=False)
    module.variance_epsilon = 1e-5  # type: ignore[assignment]
    module.forward = lambda x: nn.functional.rms_norm(x, (width,), module.weight, 1e-5)  # type: ignore[assignment]
    return module


@needs_cuda
@pytest.mark.parametrize("tokens", [1, 2, 8, 9, 30, MOST_ROWS])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_fused_products_equal_their_twins(tokens: int, quant_type: str) -> None:
    device = torch.device("cuda")
    layers = [four_bit(rows, 1024, "cuda", quant_type=quant_type) for rows in (512, 128, 144)]
    down = four_bit(1024, 512, "cuda", quant_type=quant_type)
    norm = rms_norm(1024)
    kernels = few_rows_kernels(device, quant_type == "nf4")
    ours, twin = CudaOperations.__new__(CudaOperations), TorchOperations()
    ours._device, ours._kernels = device, kernels  # noqa: SLF001 - the constructor needs a whole 4-bit model
    x = 3 * torch.randn(tokens, 1024, device="cuda", dtype=torch.bfloat16)
    narrow = torch.randn(tokens, 512, device="cuda", dtype=torch.bfloat16)

    assert gap(ours.product(layers, norm)(x), twin.product(layers, norm)(x)) <= 0.02
    assert gap(ours.gated(layers[0], layers[0], norm)(x), twin.gated(layers[0], layers[0], norm)(x)) <= 0.02
    expected = twin.product([down])(narrow, x.clone())
    assert gap(ours.product([down])(narrow, x), expected) <= 0.02
    assert gap(x, expected) <= 0.02, "the sum is made where the residual lies"


@needs_cuda
@pytest.mark.parametrize("has_norms", [False, True])
def test_placing_equals_its_twin(has_norms: bool) -> None:
    device, tokens, heads, kv_heads, dim = torch.device("cuda"), 5, 6, 2, 64
    config = SimpleNamespace(num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=dim)
    norms = {"q_norm": rms_norm(dim), "k_norm": rms_norm(dim)} if has_norms else {}
    layer = SimpleNamespace(self_attn=SimpleNamespace(**norms))
    projected = torch.randn(tokens, (heads + 2 * kv_heads) * dim, device="cuda", dtype=torch.bfloat16)
    angles = torch.randn(tokens, dim // 2, device="cuda").repeat(1, 2)
    slots = torch.tensor([7, 0, 3, 11, 4], device="cuda")
    found, expected = (torch.zeros(2, 12, kv_heads, dim, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    arguments = (angles.cos().bfloat16(), angles.sin().bfloat16(), slots)

    wanted = TorchOperations().placing(layer, config)(projected.clone(), *arguments, *expected)  # type: ignore[arg-type]
    place = RotaryPlacing(layer, config, few_rows_kernels(device, True).place, device)
    query = place(projected, *arguments, *found)

    assert gap(query, wanted) <= 0.01
    assert gap(found, expected) <= 0.01
    assert torch.equal(found[1], expected[1]), "values are only moved"


@needs_cuda
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(32, 8, 128), (9, 3, 64), (16, 2, 128), (4, 4, 64)])
@pytest.mark.parametrize("has_norms", [False, True])
def test_a_decode_steps_attention_equals_place_and_flash(heads: int, kv_heads: int, dim: int, has_norms: bool) -> None:
    device = torch.device("cuda")
    config = SimpleNamespace(num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=dim)
    norms = {"q_norm": rms_norm(dim), "k_norm": rms_norm(dim)} if has_norms else {}
    layer = SimpleNamespace(self_attn=SimpleNamespace(scaling=dim**-0.5, **norms))
    kernel = decode_attention_kernel(device, config)
    assert kernel is not None
    placed = TorchOperations().attention(layer, config, REFERENCE)

    assert agrees(DecodeAttention(layer, config, kernel, placed), placed, config, device)  # type: ignore[arg-type]
