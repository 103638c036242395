"""Products of few rows with 4-bit matrices: which layers the kernel covers, and that it computes what they compute."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model_runtime.kernels.few_rows import MOST_ROWS, _pairs, covers, speed_up

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def four_bit(rows: int, columns: int, device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear4bit(columns, rows, False, dtype, True, "nf4", device="meta")
    weight = torch.randn((rows, columns), generator=torch.Generator().manual_seed(2)).to(dtype)
    layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=layer).to(device)
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
