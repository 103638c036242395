"""GPTQ's and AWQ's matrices as codes, scales and zeros.

Sources: GPTQModel, `nn_modules/qlinear/__init__.py` (`dequantize_weight`), `utils/model.py`
(`convert_gptq_v1_to_v2_format_module`); AutoAWQ, `utils/packing_utils.py` (`dequantize_gemm`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from model_runtime.weights.coded.integers import CodedIntegers, check_words, coded_integers, fields

_WORD_BITS = 32
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # of the eight outputs of a word, in turn
_ONES = {4: 0x11111111, 8: 0x01010101}
Parts = Mapping[str, torch.Tensor]


def coded_gptq(parts: Parts, shape: tuple[int, int], group: int | None, *, is_v1: bool) -> CodedIntegers:
    """`qweight` int32 `[K * bits / 32, N]`, `qzeros` int32 `[groups, N * bits / 32]`, `scales` `[groups, N]`, `g_idx`
    int32 `[K]` if there is one: the group of each column. In the first version of the format zeros are one less than
    they mean, a word at a time. Raises `ValueError` for what cannot be held."""
    qweight, qzeros, scales = parts["qweight"], parts["qzeros"], parts["scales"]
    check_words(qweight, qzeros)
    rows, columns = shape
    bits = qweight.shape[0] * _WORD_BITS // columns
    if bits not in _ONES:
        raise ValueError(f"{bits} bits")
    words = (columns * bits // _WORD_BITS, rows)
    if tuple(qweight.shape) != words or columns * bits % _WORD_BITS or rows * bits % _WORD_BITS:
        raise ValueError(f"a matrix of {rows} x {columns} has packed weights of {list(qweight.shape)}")
    if tuple(qzeros.shape) != (scales.shape[0], rows * bits // _WORD_BITS):
        raise ValueError(f"a matrix of {rows} x {columns} has packed zeros of {list(qzeros.shape)}")
    if is_v1:
        qzeros = (qzeros.long() + _ONES[bits]).int()
    zero = fields(qzeros, bits).t().contiguous()
    order, stated = order_of(parts.get("g_idx"), columns, scales.shape[0])
    size = stated or group or -(-columns // scales.shape[0])

    def read(start: int, end: int) -> torch.Tensor:
        return fields(qweight[:, start:end].t(), bits)

    return coded_integers(read, bits, scales.t().contiguous(), zero, size, shape, order)


def order_of(groups: torch.Tensor | None, columns: int, count: int) -> tuple[torch.Tensor | None, int | None]:
    """The columns group by group, None if they are already, and the columns of a group, None where nothing says it."""
    if groups is None:
        return None, None
    if tuple(groups.shape) != (columns,) or int(groups.min()) < 0 or int(groups.max()) >= count:
        raise ValueError("a column belongs to a group that has no scale (g_idx)")
    members = groups.long().bincount(minlength=count)
    size = int(members[0])
    whole = members[:-1] if count > 1 else members
    if not bool((whole == size).all()) or int(members[-1]) > size:
        raise ValueError("groups with unequal numbers of columns (g_idx)")
    is_sorted = bool((groups[1:] >= groups[:-1]).all())
    return (None if is_sorted else groups.argsort(stable=True).int()), size


def coded_awq(parts: Parts, shape: tuple[int, int], group: int | None) -> CodedIntegers:
    """The layout of AWQ's GEMM kernels: `qweight` int32 `[K, N / 8]`, `qzeros` int32 `[groups, N / 8]`, `scales`
    `[groups, N]`; a word has eight outputs in an order of its own. Raises `ValueError` for what cannot be held."""
    qweight, qzeros, scales = parts["qweight"], parts["qzeros"], parts["scales"]
    check_words(qweight, qzeros)
    rows, columns = shape
    if tuple(qweight.shape) != (columns, rows // 8) or rows % 8:
        raise ValueError(f"a matrix of {rows} x {columns} has packed weights of {list(qweight.shape)}")
    if tuple(qzeros.shape) != (scales.shape[0], rows // 8):
        raise ValueError(f"a matrix of {rows} x {columns} has packed zeros of {list(qzeros.shape)}")
    size = group or -(-columns // scales.shape[0])

    def read(start: int, end: int) -> torch.Tensor:
        first = start // 8
        outputs = _in_order(qweight[:, first : -(-end // 8)]).t()
        return outputs[start - 8 * first : end - 8 * first].contiguous()

    return coded_integers(read, 4, scales.t().contiguous(), _in_order(qzeros).t().contiguous(), size, shape)


def _in_order(words: torch.Tensor) -> torch.Tensor:
    """int32 `[n, w]` to uint8 `[n, 8 * w]`, outputs in turn."""
    return fields(words, 4).view(words.shape[0], -1, 8)[..., list(_AWQ_PLACES)].flatten(1)
