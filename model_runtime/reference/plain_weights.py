"""What the packed tensors of GPTQ, AWQ, compressed-tensors, fbgemm and LLM.int8 mean, as plain float32 weights.

Each format's own formula, one number at a time, and nothing of the code that runs these formats: it is what that code
is held against. Sources: GPTQModel (`dequantize_weight`), AutoAWQ (`dequantize_gemm`), compressed-tensors
(`unpack_from_int32`, `dequantize`), bitsandbytes (`int8_vectorwise_dequant`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.checks.checkpoint_check import weight_files

Settings = Mapping[str, Any]
Parts = Mapping[str, torch.Tensor]
_WORD_BITS = 32
_AWQ_OUTPUTS = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight outputs each field of a word has, lowest field first
_PARTS = frozenset({"qweight", "qzeros", "scales", "g_idx", "SCB"}) | {
    f"weight{part}" for part in ("", "_packed", "_scale", "_zero_point", "_shape", "_g_idx", "_format")
}
_MARKS = ("qweight", "weight_packed", "weight_scale", "SCB")


def has_plain_formula(method: str, settings: Settings) -> bool:
    """Whether the formulas here say what weights stored by the method with this `quantization_config` mean."""
    layout = str(settings.get("format"))
    if method == "gptq":
        version = str(settings.get("checkpoint_format") or settings.get("format") or "gptq").lower()
        fills_words = settings.get("bits", 4) in (2, 4, 8)  # fields of 3 bits lie across words
        return version in ("gptq", "gptq_v2") and fills_words and not settings.get("is_marlin_format")
    if method == "awq":
        return str(settings.get("version") or settings.get("format") or "gemm").lower() in ("gemm", "exllama", "ipex")
    if method == "compressed-tensors":
        return layout in ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision")
    return method == "fbgemm_fp8" or (method == "bitsandbytes" and bool(settings.get("load_in_8bit")))


def plain_tensors(
    directory: Path, method: str, settings: Settings, dtype: torch.dtype
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """All tensors of a checkpoint by its own names, with a `weight` of `dtype` `[N, K]` for each packed matrix, and the
    names of these weights. Raises `ModelLoadError` for tensors that the formula has no meaning for."""
    found = dict[str, torch.Tensor]()
    unpacked: list[str] = []
    for base, parts in _matrices(directory):
        if not any(mark in parts for mark in _MARKS):
            found |= {f"{base}.{name}" if base else name: tensor for name, tensor in parts.items()}
            continue
        try:
            found[f"{base}.weight"] = plain_matrix(parts, method, settings).to(dtype)
        except (KeyError, RuntimeError, IndexError) as error:
            raise ModelLoadError(f"The tensors of {base} do not fit together: {error}.") from error
        unpacked.append(f"{base}.weight")
        found |= {f"{base}.{name}": tensor for name, tensor in parts.items() if name not in _PARTS}
    return found, unpacked


def plain_matrix(parts: Parts, method: str, settings: Settings) -> torch.Tensor:
    """The float32 weight `[N, K]` that the tensors of one matrix mean, by their names in the checkpoint. Raises
    `KeyError`, `IndexError` or `RuntimeError` where they do not fit together."""
    return _FORMULAS[method](parts, settings).contiguous()


def _matrices(directory: Path) -> Iterator[tuple[str, Parts]]:
    """The tensors of each layer by their last names; those of one layer may lie in two files."""
    files = {path: safe_open(path, framework="pt") for path in weight_files(directory)}
    places = dict[str, dict[str, Any]]()
    for file in files.values():
        for key in file.keys():  # type: ignore[no-untyped-call] # noqa: SIM118 - it is not a mapping
            base, _, name = key.rpartition(".")
            places.setdefault(base, {})[name] = file
    for base, names in places.items():
        whole = {name: f"{base}.{name}" if base else name for name in names}
        yield base, {name: file.get_tensor(whole[name]) for name, file in names.items()}


def _gptq(parts: Parts, settings: Settings) -> torch.Tensor:
    """Codes lie along the inputs, zeros along the outputs, each zero one less than it means in the first version: as
    its programs do, one is added to all fields of a word at once."""
    outputs, scales = parts["qweight"].shape[1], parts["scales"].float()
    bits = parts["qzeros"].shape[1] * _WORD_BITS // outputs
    words = parts["qzeros"].long()
    if str(settings.get("checkpoint_format") or settings.get("format") or "gptq").lower() != "gptq_v2":
        words = words + sum(1 << place for place in range(0, _WORD_BITS, bits))
    zeros = _fields(words, bits)  # [groups, N]
    codes = _fields(parts["qweight"].t(), bits).t()  # [K, N]
    columns = codes.shape[0]
    group = parts.get("g_idx", _in_order(columns, scales.shape[0], settings.get("group_size"))).long()
    return (scales[group] * (codes - zeros[group]).float()).t()


def _awq(parts: Parts, settings: Settings) -> torch.Tensor:
    def outputs(words: torch.Tensor) -> torch.Tensor:
        fields = _fields(words, 4).view(words.shape[0], -1, 8)
        found = torch.empty_like(fields)
        found[:, :, list(_AWQ_OUTPUTS)] = fields
        return found.flatten(1)

    codes, zeros, scales = outputs(parts["qweight"]), outputs(parts["qzeros"]), parts["scales"].float()
    size = settings.get("group_size", settings.get("q_group_size"))
    group = _in_order(codes.shape[0], scales.shape[0], size)
    return (scales[group] * (codes - zeros[group]).float()).t()


def _compressed(parts: Parts, settings: Settings) -> torch.Tensor:
    """A packed code has half its range added, and so has a zero that is packed."""
    zero = parts.get("weight_zero_point")
    if "weight_packed" not in parts:
        codes = parts["weight"].float()
        rows, columns = codes.shape
    else:
        rows, columns = (int(size) for size in parts["weight_shape"])
        bits = parts["weight_packed"].shape[1] * _WORD_BITS // columns
        codes = (_fields(parts["weight_packed"], bits)[:, :columns] - 2 ** (bits - 1)).float()
        if zero is not None and zero.dtype == torch.int32:
            zero = _fields(zero.t(), bits).t()[:rows] - 2 ** (bits - 1)
    ordered = parts.get("weight_g_idx")
    if ordered is not None and bool((ordered < 0).all()):
        ordered = None

    def spread(numbers: torch.Tensor) -> torch.Tensor:
        """Numbers of rows, groups, blocks or all as `[N, K]`."""
        numbers = numbers.float()
        if numbers.numel() == 1:
            return numbers.reshape(1, 1).expand(rows, columns)
        numbers = numbers.reshape(rows, -1) if numbers.ndim < 2 else numbers
        high, wide = _block(settings, numbers, (rows, columns))
        row = torch.arange(rows) // high
        column = ordered.long() if ordered is not None else torch.arange(columns) // wide
        return numbers[row][:, column]

    return (codes if zero is None else codes - spread(zero)) * spread(parts["weight_scale"])


def _block(settings: Settings, numbers: torch.Tensor, shape: tuple[int, int]) -> tuple[int, int]:
    """The rows and columns that share a number: of a block that the settings name, else of a row's group."""
    for scheme in settings.get("config_groups", {}).values():
        size = (scheme.get("weights") or {}).get("block_structure")
        size = [int(one) for one in size.split("x")] if isinstance(size, str) else size
        if size and tuple(numbers.shape) == (-(-shape[0] // size[0]), -(-shape[1] // size[1])):
            return size[0], size[1]
    return shape[0] // numbers.shape[0], shape[1] // numbers.shape[1]


def _fbgemm(parts: Parts, settings: Settings) -> torch.Tensor:
    return parts["weight"].float() * parts["weight_scale"].float().reshape(-1, 1)


def _llm_int8(parts: Parts, settings: Settings) -> torch.Tensor:
    """A row's largest magnitude is 127."""
    return parts["weight"].float() * parts["SCB"].float().reshape(-1, 1) * 7.874015718698502e-3


def _in_order(columns: int, groups: int, size: Any) -> torch.Tensor:
    """The group of each column where nothing but a size says it; the last group may have fewer columns."""
    wide = size if isinstance(size, int) and size > 0 else -(-columns // groups)
    return torch.arange(columns) // wide


def _fields(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Words of 32 bits `[n, w]` as int64 `[n, w * 32 / bits]`, the lowest field of each first."""
    at = torch.arange(0, _WORD_BITS, bits)
    fields: torch.Tensor = (words.long().unsqueeze(-1) >> at) & (2**bits - 1)
    return fields.flatten(1)


_FORMULAS: Mapping[str, Callable[[Parts, Settings], torch.Tensor]] = {
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed,
    "fbgemm_fp8": _fbgemm,
    "bitsandbytes": _llm_int8,
}
