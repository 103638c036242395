"""GPTQ, AWQ, compressed-tensors, FP8 and int8 in our own kernels: the weights that the formats mean, to the bit."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bitsandbytes import functional

from model_runtime.reference.plain_weights import has_plain_formula, plain_matrix
from model_runtime.weights.checkpoint_formats.stored_format import StoredFormat
from model_runtime.weights.coded.coded_rows import Coded, Kind
from model_runtime.weights.coded.eights import coded_fp8, coded_llm_int8
from model_runtime.weights.coded.numbers import dequantised_rows
from model_runtime.weights.native_matrix import NativeMatrix
from model_runtime.weights.own_layers.formats import own_format
from tests.model_runtime.tiny_packed import Scheme, awq, compressed, eights, float_settings, gptq, llm_int8

ROWS, COLUMNS = 104, 320  # rows that fill no pair of tiles, five groups of 64
FBGEMM = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}
SCHEMES: dict[str, Scheme] = {
    "gptq": gptq(),
    "gptq asymmetric": gptq(sym=False, group=64),
    "gptq v2": gptq(sym=False, version="gptq_v2"),
    "gptq in order of activations": gptq(sym=False, act_order="shared"),
    "gptq with a short last group": gptq(sym=False, group=128, act_order="shared"),
    "gptq with one group": gptq(sym=False, group=-1),
    "gptq without g_idx": gptq(sym=False, with_groups=False),
    "gptq of groups that are no power of two": gptq(sym=False, group=160),
    "gptq bfloat16": gptq(sym=False, dtype=torch.bfloat16),
    "gptq 8 bits": gptq(bits=8),
    "gptq 8 bits asymmetric": gptq(bits=8, sym=False, group=64),
    "gptq 8 bits in order of activations": gptq(bits=8, sym=False, act_order="shared"),
    "awq": awq(),
    "awq bfloat16": awq(group=64, dtype=torch.bfloat16),
    "awq with one group": awq(group=-1),
    "W4A16": compressed(),
    "W4A16 asymmetric": compressed(sym=False),
    "W4A16 in order of activations": compressed(actorder=True),
    "W4A16 float16": compressed(sym=False, dtype=torch.float16, group=64),
    "W4A16 float32": compressed(dtype=torch.float32),
    "W8A16": compressed(bits=8, group=-1),
    "W8A16 asymmetric": compressed(bits=8, group=64, sym=False),
    "int8": compressed(bits=8, group=-1, layout="int-quantized"),
    "int8 asymmetric": compressed(bits=8, group=-1, layout="int-quantized", sym=False),
    "FP8 a matrix": eights(float_settings("tensor"), None, torch.float32),
    "FP8 a row": eights(float_settings("channel"), (1, 0), torch.bfloat16),
    "FP8 a block": eights(float_settings("block", block_structure=[48, 64]), (48, 64), torch.bfloat16),
    "fbgemm": eights(FBGEMM, (1, 0), torch.float32),
    "bitsandbytes": llm_int8(),
}


def matrix(rows: int = ROWS, columns: int = COLUMNS) -> torch.Tensor:
    """Rows of different sizes, and columns off the middle."""
    draw = torch.Generator().manual_seed(rows + columns)
    numbers = torch.randn(rows, columns, generator=draw) * torch.rand(rows, 1, generator=draw)
    return numbers + 0.3 * torch.rand(1, columns, generator=draw)


def read(scheme: Scheme, parts: dict[str, torch.Tensor], shape: tuple[int, int], **settings: Any) -> Coded:
    stored = StoredFormat(scheme.settings["quant_method"], scheme.settings | settings)
    own = own_format(stored)
    assert own is not None
    assert own.refusal(stored.settings) is None
    return own.read(parts, shape, stored.settings)


def plain(name: str, parts: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the doctor's formulas make of the parts."""
    settings = SCHEMES[name].settings
    return plain_matrix(parts, settings["quant_method"], settings)


def all_rows(held: NativeMatrix) -> torch.Tensor:
    return held.take(torch.arange(held.rows))


@pytest.mark.parametrize("name", SCHEMES)
def test_the_weights_are_those_that_the_format_means(name: str, libraries: dict[str, ctypes.CDLL]) -> None:
    """On processors of every width, and de-quantised in torch. Products of codes and scales are exact but with float32
    scales: processors that round these before they add the offset are a rounding off."""
    parts, expected = SCHEMES[name].pack("layers.0.up_proj.weight", matrix())
    coded = read(SCHEMES[name], parts, (ROWS, COLUMNS))
    for processor, library in libraries.items():
        found = all_rows(NativeMatrix(coded, None, library))
        if processor == "SSE" and name == "W4A16 float32":
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        else:
            assert torch.equal(found, expected)
    assert torch.equal(dequantised_rows(coded, torch.float32), expected)
    assert torch.equal(dequantised_rows(coded, torch.bfloat16), expected.to(torch.bfloat16))
    assert torch.equal(plain(name, parts), expected)


@pytest.mark.parametrize("name", SCHEMES)
def test_products_use_these_weights_and_do_not_depend_on_other_rows(
    name: str, libraries: dict[str, ctypes.CDLL]
) -> None:
    parts, expected = SCHEMES[name].pack("layers.0.up_proj.weight", matrix())
    coded, draw = read(SCHEMES[name], parts, (ROWS, COLUMNS)), torch.Generator().manual_seed(3)
    x, bias = torch.randn(13, COLUMNS, generator=draw), torch.randn(ROWS, generator=draw)
    found = {key: NativeMatrix(coded, bias, library) for key, library in libraries.items()}
    products = {key: held.multiply(x) for key, held in found.items()}
    exact = x.double() @ expected.double().t() + bias.double()
    torch.testing.assert_close(products["this one"].double(), exact, rtol=0, atol=5e-5)
    assert torch.equal(products["AVX2"], products["this one"])
    cut = torch.cat([found["this one"].multiply(part) for part in x.split([1, 2, 3, 7])])
    assert torch.equal(cut, products["this one"])


@pytest.mark.parametrize("name", SCHEMES)
def test_a_matrix_takes_the_bytes_of_the_file(name: str, own_library: ctypes.CDLL) -> None:
    """But where a group is cut into shorter runs."""
    parts, _ = SCHEMES[name].pack("layers.0.up_proj.weight", matrix(128, 960))
    held = NativeMatrix(read(SCHEMES[name], parts, (128, 960)), None, own_library)
    most = 1.15 if name.endswith("no power of two") else 1.05
    assert held.nbytes <= most * sum(part.nbytes for part in parts.values())


def shifted(part: torch.Tensor) -> torch.Tensor:
    """Each entry where the next one should be: of the next group, output or word."""
    return part.roll(1, -1) if part.shape[-1] > 1 else part.roll(1, 0)


def one_more(part: torch.Tensor) -> torch.Tensor:
    """Each zero, or the first one of each word, off by one."""
    return part + 1


MUTATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "dropped": torch.ones_like,
    "shifted": shifted,
    "off by one": one_more,
    "of one group": lambda part: part[..., :1].expand_as(part).contiguous(),
    "permuted": lambda part: part.flip(0),
}
CHANGED = {
    "scale": ("dropped", "shifted"),
    "scales": ("dropped", "shifted"),
    "weight_scale": ("dropped", "shifted"),
    "SCB": ("dropped", "shifted"),
    "qzeros": ("dropped", "shifted", "off by one", "of one group"),
    "weight_zero_point": ("dropped", "shifted", "off by one"),
    "g_idx": ("permuted",),
    "weight_g_idx": ("permuted",),
    "qweight": ("shifted", "off by one"),
    "weight_packed": ("shifted", "off by one"),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_whatever_is_dropped_or_shifted_shows_in_the_weights(name: str, own_library: ctypes.CDLL) -> None:
    """The comparisons above would find it: each tensor of the format matters, and so does each entry's place. What
    other tensors mean is what the doctor's plain formulas say, or is refused."""
    parts, expected = SCHEMES[name].pack("layers.0.up_proj.weight", matrix())
    for part in CHANGED.keys() & parts.keys():
        fresh = [(mutation, MUTATIONS[mutation](parts[part])) for mutation in CHANGED[part]]
        others = [(mutation, tensor) for mutation, tensor in fresh if not torch.equal(tensor, parts[part])]
        assert others or parts[part].unique().numel() == 1  # one group: there is no other one
        for mutation, tensor in others:
            found = held_rows(name, parts | {part: tensor}, own_library)
            assert not torch.equal(found, expected), (part, mutation)
            if len(found):
                torch.testing.assert_close(found, plain(name, parts | {part: tensor}), rtol=1e-6, atol=1e-6)


def held_rows(name: str, parts: dict[str, torch.Tensor], library: ctypes.CDLL) -> torch.Tensor:
    """The weights that are held, none where they are refused."""
    try:
        return all_rows(NativeMatrix(read(SCHEMES[name], parts, (ROWS, COLUMNS)), None, library))
    except ValueError:
        return torch.empty(0)


def test_the_two_versions_of_gptq_differ_by_one() -> None:
    parts, expected = SCHEMES["gptq v2"].pack("x", matrix())
    other = read(SCHEMES["gptq v2"], parts, (ROWS, COLUMNS), checkpoint_format="gptq")
    found = dequantised_rows(other, torch.float32)
    scale = parts["scales"].t().float()[:, parts["g_idx"].long()]
    assert ((found - expected) / scale).abs().median() == 1


def test_symmetric_matrices_need_no_zeros(own_library: ctypes.CDLL) -> None:
    for name in ("gptq", "gptq 8 bits", "W4A16", "int8"):
        parts, _ = SCHEMES[name].pack("x", matrix())
        coded = read(SCHEMES[name], parts, (ROWS, COLUMNS))
        assert coded.rows(0, 3).zero is None
        kind = Kind.Q4 if "8" not in name else Kind.Q8
        assert NativeMatrix(coded, None, own_library).kind is kind


@pytest.mark.parametrize("block", [(128, 128), (32, 32), (16, 64), (48, 96), (1, 32)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_fp8_number_is_read_exactly(
    block: tuple[int, int], dtype: torch.dtype, libraries: dict[str, ctypes.CDLL]
) -> None:
    """All 254 numbers of E4M3, zero and subnormals included, under blocks that do and do not divide the matrix."""
    numbers = torch.arange(256, dtype=torch.uint8)
    every = numbers[(numbers & 0x7F) != 0x7F]
    draw = torch.Generator().manual_seed(1)
    codes = every[torch.randint(0, len(every), (ROWS, COLUMNS), generator=draw)].view(torch.float8_e4m3fn)
    scale = torch.rand(-(-ROWS // block[0]), -(-COLUMNS // block[1]), generator=draw).to(dtype)
    factors = scale.float().repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[:ROWS, :COLUMNS]
    coded = coded_fp8(codes, scale, block)
    for library in libraries.values():
        assert torch.equal(all_rows(NativeMatrix(coded, None, library)), codes.float() * factors)


def test_scales_of_one_byte_are_exponents(libraries: dict[str, ctypes.CDLL]) -> None:
    draw = torch.Generator().manual_seed(2)
    codes = torch.randint(0, 127, (ROWS, COLUMNS), generator=draw).to(torch.uint8).view(torch.float8_e4m3fn)
    scale = torch.randint(0, 246, (ROWS, COLUMNS // 32), generator=draw).to(torch.uint8)
    expected = torch.ldexp(codes.float(), (scale.int() - 127).repeat_interleave(32, 1))
    coded = coded_fp8(codes, scale, (1, 32))
    for library in libraries.values():
        assert torch.equal(all_rows(NativeMatrix(coded, None, library)), expected)
    scale[0, 0] = 247
    with pytest.raises(ValueError, match="not a finite number"):
        NativeMatrix(coded_fp8(codes, scale, (1, 32)), None, libraries["this one"])


def test_int8_is_rounded_as_bitsandbytes_rounds_it(own_library: ctypes.CDLL) -> None:
    draw = torch.Generator().manual_seed(4)
    codes = torch.randint(-128, 128, (ROWS, COLUMNS), generator=draw).to(torch.int8)
    largest = torch.rand(ROWS, generator=draw) * 3
    held = NativeMatrix(coded_llm_int8(codes, largest), None, own_library)
    assert torch.equal(all_rows(held), functional.int8_vectorwise_dequant(codes, largest))


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("gptq", {"scales": lambda t: t[:-1], "qzeros": lambda t: t[:-1]}, "a group that has no scale"),
        ("gptq", {"qzeros": lambda t: t[:, :-1]}, "packed zeros of"),
        ("gptq", {"qweight": lambda t: t[:-1]}, "3 bits"),
        ("gptq", {"qweight": lambda t: t[:, :-1]}, "packed weights of"),
        ("gptq", {"qweight": lambda t: t[:20]}, "2 bits"),
        ("gptq", {"g_idx": lambda t: t % 3}, "unequal numbers of columns"),
        ("gptq", {"g_idx": lambda t: t - 1}, "a group that has no scale"),
        ("gptq", {"scales": lambda t: t.double()}, "scales of torch.float64"),
        ("gptq", {"scales": lambda t: t * float("nan")}, "not a finite number"),
        ("awq", {"qweight": lambda t: t[:-1]}, "packed weights of"),
        ("awq", {"scales": lambda t: t[:-1]}, "packed zeros of"),
        ("W4A16", {"weight_packed": lambda t: t[:, :-1]}, "3 bits"),
        ("W4A16", {"weight_packed": lambda t: t[:-1]}, "packed weights of"),
        ("W4A16", {"weight_scale": lambda t: t[:, :3]}, "has 3 groups"),
        ("W4A16 asymmetric", {"weight_zero_point": lambda t: t[:-1]}, "packed zeros of"),
        ("FP8 a block", {"weight_scale": lambda t: t[:1]}, "other scales than its blocks need"),
        ("FP8 a row", {"weight": lambda t: (t.view(torch.uint8) | 0x7F).view(t.dtype)}, "not numbers"),
        ("FP8 a row", {"weight": lambda t: t.to(torch.float8_e5m2)}, "only FP8 in E4M3"),
        ("gptq", {"qweight": lambda t: t.float()}, "words of torch.float32"),
        ("gptq", {"qzeros": lambda t: t.short()}, "words of torch.int16"),
        ("awq", {"qzeros": lambda t: t.float()}, "words of torch.float32"),
        ("W4A16", {"weight_packed": lambda t: t.float()}, "words of torch.float32"),
        ("int8 asymmetric", {"weight_zero_point": lambda t: t.bfloat16()}, "zeros of torch.bfloat16"),
        ("int8 asymmetric", {"weight_zero_point": lambda t: t.short() + 300}, "not in the range from -128 to 127"),
        ("FP8 a row", {"weight_scale": lambda t: t.to(torch.float8_e4m3fn)}, "scales of torch.float8_e4m3fn"),
        ("bitsandbytes", {"weight_format": lambda t: t + 1}, "another layout"),
        ("bitsandbytes", {"SCB": lambda t: t[:-1]}, "other scales than its blocks need"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    name: str, change: dict[str, Callable[..., torch.Tensor]], sentence: str, own_library: ctypes.CDLL
) -> None:
    parts, _ = SCHEMES[name].pack("x", matrix())
    parts |= {key: mutate(parts[key]).contiguous() for key, mutate in change.items()}
    with pytest.raises(ValueError, match=sentence):
        NativeMatrix(read(SCHEMES[name], parts, (ROWS, COLUMNS)), None, own_library)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_zeros_of_any_whole_numbers_mean_the_same(dtype: torch.dtype, own_library: ctypes.CDLL) -> None:
    scheme = SCHEMES["int8 asymmetric"]
    parts, expected = scheme.pack("x", matrix())
    parts["weight_zero_point"] = parts["weight_zero_point"].to(dtype)
    held = NativeMatrix(read(scheme, parts, (ROWS, COLUMNS)), None, own_library)
    assert torch.equal(all_rows(held), expected)


@pytest.mark.parametrize(
    ("name", "missing", "settings"),
    [
        ("gptq in order of activations", "g_idx", {"desc_act": True}),
        ("W4A16 in order of activations", "weight_g_idx", {}),
        ("W4A16 asymmetric", "weight_zero_point", {}),
    ],
)
def test_what_the_settings_say_and_no_tensor_has_is_refused(name: str, missing: str, settings: dict[str, Any]) -> None:
    parts, _ = SCHEMES[name].pack("model.layers.0.self_attn.q_proj", matrix())
    del parts[missing]
    with pytest.raises(ValueError, match=f"no {missing} although its settings say"):
        read(SCHEMES[name], parts, (ROWS, COLUMNS), **settings)


def test_fields_that_lie_across_words_have_no_plain_formula() -> None:
    known = [bits for bits in range(1, 9) if has_plain_formula("gptq", {"bits": bits})]
    assert known == [2, 4, 8]
