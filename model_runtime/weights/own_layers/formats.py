"""The formats of quantised checkpoints that run in our own form, without the package that made them: which tensors
stand for a matrix, what they mean, and what is refused by name before anything is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from model_runtime.weights.checkpoint_formats import compressed_settings
from model_runtime.weights.checkpoint_formats.stored_format import StoredFormat
from model_runtime.weights.coded.coded_rows import Coded
from model_runtime.weights.coded.compressed import coded_compressed
from model_runtime.weights.coded.eights import coded_fp8, coded_llm_int8
from model_runtime.weights.coded.gptq import coded_awq, coded_gptq

Parts = Mapping[str, torch.Tensor]
Settings = Mapping[str, Any]
_LEAST_GROUP = 32


@dataclass(frozen=True, slots=True)
class OwnFormat:
    """`parts` are the names of the tensors that may stand for a matrix, `marks` those of them that plain matrices never
    have, `needs` those that go with each mark. `read` makes codes and scales of them, `[N, K]`; `refusal` is the
    setting that cannot be held, `note` a sentence about what is computed otherwise than the settings say."""

    parts: frozenset[str]
    marks: frozenset[str]
    needs: Mapping[str, tuple[str, ...]]
    read: Callable[[Parts, tuple[int, int], Settings], Coded]
    refusal: Callable[[Settings], str | None]
    note: Callable[[Settings], str | None] = lambda settings: None


def own_format(stored: StoredFormat) -> OwnFormat | None:
    """None for what another quantiser runs: NF4 and FP4 (bitsandbytes), FP8 of transformers, and every other method."""
    if stored.method == "bitsandbytes":
        return _LLM_INT8 if stored.bits == 8 else None
    return _FORMATS.get(stored.method)


def _gptq(parts: Parts, shape: tuple[int, int], settings: Settings) -> Coded:
    if settings.get("desc_act") and "g_idx" not in parts and parts["scales"].shape[0] > 1:
        raise ValueError("no g_idx although its settings say desc_act")
    return coded_gptq(parts, shape, _group(settings), is_v1=_gptq_version(settings) != "gptq_v2")


def _gptq_version(settings: Settings) -> str:
    return str(settings.get("checkpoint_format") or settings.get("format") or "gptq").lower()


def _group(settings: Settings) -> int | None:
    """Columns of a group; None for one group a row."""
    size = settings.get("group_size", settings.get("q_group_size"))
    return size if isinstance(size, int) and size > 0 else None


def _group_refusal(settings: Settings) -> str | None:
    size = _group(settings)
    return f"groups of {size} columns" if size is not None and size % _LEAST_GROUP else None


def _gptq_refusal(settings: Settings) -> str | None:
    overrides = settings.get("dynamic") or {}
    bits = {settings.get("bits")} | {one.get("bits", 4) for one in overrides.values() if isinstance(one, Mapping)}
    wrong = sorted(str(one) for one in bits - {4, 8, None})  # the tensors say what the settings do not
    if wrong:
        return f"{wrong[0]} bits"
    if settings.get("is_marlin_format") or _gptq_version(settings) not in ("gptq", "gptq_v2"):
        return f"the layout {_gptq_version(settings) if not settings.get('is_marlin_format') else 'marlin'}"
    if str(settings.get("pack_dtype") or "int32").rpartition(".")[2] != "int32":
        return f"words of {settings['pack_dtype']}"
    for extra in ("adapter", "rotation"):
        if settings.get(extra):
            return f"an {extra}" if extra == "adapter" else f"a {extra}"
    return _group_refusal(settings)


def _awq(parts: Parts, shape: tuple[int, int], settings: Settings) -> Coded:
    return coded_awq(parts, shape, _group(settings))


def _awq_refusal(settings: Settings) -> str | None:
    bits = settings.get("bits", settings.get("w_bit", 4))
    if bits != 4:
        return f"{bits} bits"
    layout = str(settings.get("version") or settings.get("format") or "gemm").lower()
    if layout not in ("gemm", "exllama", "ipex"):
        return f"the layout {layout}"
    if settings.get("backend", "autoawq") == "llm-awq":
        return "the layout of llm-awq"
    if settings.get("zero_point") is False:
        return "no zero points"
    return _group_refusal(settings)


def _compressed(parts: Parts, shape: tuple[int, int], settings: Settings) -> Coded:
    for name, setting in compressed_settings.needed(settings):
        if name not in parts:
            raise ValueError(f"no {name} although its settings say {setting}")
    return coded_compressed(parts, shape, compressed_settings.blocks(settings))


def _fbgemm(parts: Parts, shape: tuple[int, int], settings: Settings) -> Coded:
    return coded_fp8(parts["weight"], parts["weight_scale"], None)


def _llm_int8(parts: Parts, shape: tuple[int, int], settings: Settings) -> Coded:
    if parts["weight"].dtype != torch.int8 or int(parts.get("weight_format", torch.zeros(1)).max()) != 0:
        raise ValueError("weights in another layout than rows of int8")
    return coded_llm_int8(parts["weight"], parts["SCB"])


def _rounds_nothing(settings: Settings) -> str:
    return "The checkpoint's own kernels would round activations to 8 bits; that is not done here."


_PACKED = frozenset({"qweight", "qzeros", "scales"})
_GPTQ_PARTS = _PACKED | {"g_idx"}
_NEEDS = {mark: tuple(sorted(_PACKED)) for mark in _GPTQ_PARTS}
_FORMATS = {
    "gptq": OwnFormat(_GPTQ_PARTS, _GPTQ_PARTS, _NEEDS, _gptq, _gptq_refusal),
    "awq": OwnFormat(_PACKED, _PACKED, _NEEDS, _awq, _awq_refusal),
    "compressed-tensors": OwnFormat(
        frozenset({"weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"}),
        frozenset({"weight_packed", "weight_scale", "weight_zero_point"}),
        {"weight_packed": ("weight_scale",), "weight_scale": (), "weight_zero_point": ("weight_scale",)},
        _compressed,
        compressed_settings.refusal,
        compressed_settings.note,
    ),
    "fbgemm_fp8": OwnFormat(
        frozenset({"weight", "weight_scale"}),
        frozenset({"weight_scale"}),
        {"weight_scale": ("weight",)},
        _fbgemm,
        lambda settings: None,
        _rounds_nothing,
    ),
}
_LLM_INT8 = OwnFormat(
    frozenset({"weight", "SCB", "weight_format"}),
    frozenset({"SCB", "weight_format"}),
    {"SCB": ("weight",), "weight_format": ("weight", "SCB")},
    _llm_int8,
    lambda settings: None,
    _rounds_nothing,
)
