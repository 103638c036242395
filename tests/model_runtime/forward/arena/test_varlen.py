"""The reference of the variable-length kernel is attention, written out; the flash kernels are called as they ask."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from model_runtime.forward.arena.varlen import SpanTable, VarlenKernel
from model_runtime.forward.arena.varlen_choice import agrees, choose_varlen, flash_kernels
from model_runtime.forward.arena.varlen_reference import REFERENCE, reference_varlen
from model_runtime.forward.attention_options import PLAIN, AttentionOptions

CPU = torch.device("cpu")


def table(lengths_q: list[int], begins_k: list[int], used_k: list[int]) -> SpanTable:
    begins_q = [sum(lengths_q[:n]) for n in range(len(lengths_q) + 1)]
    numbers = (torch.tensor(n, dtype=torch.int32) for n in (begins_q, [*begins_k, 0], used_k))
    return SpanTable(*numbers, max(lengths_q), max(used_k))


@pytest.mark.parametrize("window", [None, 1, 7, 1000])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (8, 1)])
@pytest.mark.parametrize("lengths_q", [[1, 1, 1], [5, 1, 12]])
def test_the_reference_is_attention_row_by_row(
    window: int | None, heads: int, kv_heads: int, lengths_q: list[int]
) -> None:
    torch.manual_seed(4)
    begins_k, used_k = [50, 3, 20], [30, 12, 12]
    keys, values = torch.randn(90, kv_heads, 16), torch.randn(90, kv_heads, 24)
    query = torch.randn(sum(lengths_q), heads, 16)
    found = REFERENCE.attend(query, keys, values, table(lengths_q, begins_k, used_k), AttentionOptions(0.3, window))
    row = 0
    for tokens, begin, used in zip(lengths_q, begins_k, used_k, strict=True):
        for place in range(tokens):
            position = used - tokens + place
            first = 0 if window is None else max(0, position - window + 1)
            seen = slice(begin + first, begin + position + 1)
            for head in range(heads):
                group = head // (heads // kv_heads)
                weights = torch.softmax(keys[seen, group] @ query[row, head] * 0.3, 0)
                torch.testing.assert_close(found[row, head], weights @ values[seen, group], atol=1e-5, rtol=0)
            row += 1


def test_lengths_beyond_their_bounds_are_refused() -> None:
    spans = table([2, 1], [0, 40], [10, 20])
    spans.max_k = 15
    with pytest.raises(ValueError, match="beyond"):
        REFERENCE.attend(torch.randn(3, 2, 8), torch.randn(90, 2, 8), torch.randn(90, 2, 8), spans, PLAIN)


def test_a_kernel_that_masks_otherwise_does_not_agree() -> None:
    def top_left(*arguments: Any, window_size: tuple[int, int], **named: Any) -> torch.Tensor:
        return reference_varlen(*arguments, window_size=(window_size[0], 0), **named)

    def whole_spans(*arguments: Any, seqused_k: torch.Tensor, **named: Any) -> torch.Tensor:
        return reference_varlen(*arguments, seqused_k=seqused_k - 1, **named)

    assert agrees(REFERENCE, CPU, torch.float32, 6, 2, 16)
    assert agrees(VarlenKernel("masks one row too", top_left), CPU, torch.float32, 6, 2, 16)
    assert not agrees(VarlenKernel("one key short", whole_spans), CPU, torch.float32, 6, 2, 16)
    assert choose_varlen(CPU, torch.float32, 6, 2, 16) is REFERENCE


def test_this_torch_offers_a_flash_kernel_that_is_called_as_its_schema_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no CUDA here, but the operator's own schema and fake kernels refuse arguments that do not fit."""
    names = [kernel.name for kernel in flash_kernels()]
    assert "flash aten varlen" in names
    meta = torch.device("meta")
    spans = SpanTable(
        torch.empty(3, dtype=torch.int32, device=meta),
        torch.empty(3, dtype=torch.int32, device=meta),
        torch.empty(2, dtype=torch.int32, device=meta),
        4,
        64,
    )
    half = {"dtype": torch.bfloat16, "device": meta}
    query, keys = torch.empty(5, 6, 64, **half), torch.empty(90, 2, 64, **half)
    for kernel in flash_kernels():
        for window in (None, 16):
            assert kernel.attend(query, keys, keys, spans, AttentionOptions(0.125, window)).shape == query.shape


def test_an_older_public_function_without_lengths_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def old(query: Any, key: Any, value: Any, *, scale: Any = None, window_size: Any = (-1, -1)) -> None:
        raise AssertionError("called")

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", old)
    assert [kernel.name for kernel in flash_kernels()] == ["flash aten varlen"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (32, 8, 128), (48, 1, 128), (4, 1, 256)])
def test_every_flash_kernel_agrees_with_the_reference(heads: int, kv_heads: int, dim: int) -> None:
    kernels = list(flash_kernels())
    assert kernels
    for kernel in kernels:
        assert agrees(kernel, torch.device("cuda"), torch.bfloat16, heads, kv_heads, dim), kernel.name
