"""Rotary positions of a GGUF file as transformers' `rope_parameters`.

Sources: llama.cpp's `load_hparams` (llama-model.cpp) for the keys and their defaults, `rope_yarn` (ggml-cpu/ops.cpp)
for what they compute, `_compute_*_parameters` (transformers, modeling_rope_utils.py) for the other side.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.gguf.metadata import Metadata

FREQUENCIES = "rope_freqs.weight"
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"
_DEFAULT_BASE = 10_000.0
_LLAMA3_LOW, _LLAMA3_HIGH = 1.0, 4.0  # of every Llama 3.1 to 3.3
_LLAMA3_CONTEXTS = tuple(1 << power for power in range(3, 21))
_ANY_CONTEXT = 1 << 20  # a number of tokens that keeps fitted settings precise
_FACTORS_TOLERANCE = 1e-5  # of frequency factors, which the file has in float32
_BETAS = {"rope.scaling.yarn_beta_fast": "beta_fast", "rope.scaling.yarn_beta_slow": "beta_slow"}


def rope_parameters(metadata: Metadata, head_dim: int, context: int, *, may_be_partial: bool = False) -> dict[str, Any]:
    """For a model whose layers all have the same positions. Raises `ModelLoadError` for what transformers cannot
    compute. `may_be_partial`: the architecture can leave a part of each head without positions."""
    base = metadata.number("rope.freq_base", _DEFAULT_BASE)
    rotary = metadata.count("rope.dimension_count", head_dim)
    if rotary != head_dim and not may_be_partial:
        architecture = metadata.header.architecture
        raise ModelLoadError(
            f"{metadata.path.name} cannot be used: its {architecture}.rope.dimension_count is {rotary}, but its heads "
            f"are {head_dim} wide ({architecture}.attention.key_length), which Keepwarm does not support for this "
            "architecture."
        )
    found = _scaled(metadata, base, rotary, context)
    if may_be_partial:
        found["partial_rotary_factor"] = rotary / head_dim
    return found


def _scaled(metadata: Metadata, base: float, rotary: int, context: int) -> dict[str, Any]:
    metadata.ignore("rope.scaling.finetuned")
    factor = metadata.number("rope.scaling.factor", metadata.number("rope.scale_linear", 0.0)) or 1.0
    kind = metadata.text("rope.scaling.type", "linear")  # llama.cpp's default; without a factor it changes nothing
    original = metadata.count("rope.scaling.original_context_length", context)
    metadata.expect("rope.scaling.yarn_log_multiplier", 0.0)
    metadata.expect("rope.scaling.yarn_attn_factor", 1.0)
    if metadata.header.tensors.keys() & {LONG_FACTORS, SHORT_FACTORS}:
        return _long(metadata, base, original)
    factors = metadata.numbers_of(FREQUENCIES)
    if factors is not None and not np.all(factors == 1):
        if factor != 1 and kind != "none":
            metadata.refuse("rope.scaling.factor", factor)
        return {"rope_theta": base, **_llama3(metadata, factors, base, rotary, original)}
    if kind == "yarn":
        return {"rope_theta": base, **_yarn(metadata, factor, original)}
    if kind not in ("none", "linear"):
        metadata.refuse("rope.scaling.type", kind)
    metadata.expect("rope.scaling.attn_factor", 1.0)
    metadata.expect("rope.scaling.yarn_ext_factor", 0.0)
    metadata.ignore(*_BETAS)
    if kind == "none" or factor == 1:
        return {"rope_type": "default", "rope_theta": base}
    return {"rope_type": "linear", "rope_theta": base, "factor": factor}


def _yarn(metadata: Metadata, factor: float, original: int) -> dict[str, Any]:
    """ggml multiplies its own `1 + 0.1 ln(factor)` by the file's `attn_factor`."""
    metadata.expect("rope.scaling.yarn_ext_factor", 1.0)
    found: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        "attention_factor": metadata.number("rope.scaling.attn_factor", 1.0) * (1 + 0.1 * math.log(max(factor, 1.0))),
    }
    for key, name in _BETAS.items():
        if metadata.has(key):
            found[name] = metadata.number(key)
    return found


def _long(metadata: Metadata, base: float, original: int) -> dict[str, Any]:
    """Phi-3's two lists of divisors, one up to the original context and one beyond."""
    long, short = metadata.numbers_of(LONG_FACTORS), metadata.numbers_of(SHORT_FACTORS)
    if long is None or short is None:
        missing = LONG_FACTORS if long is None else SHORT_FACTORS
        raise ModelLoadError(f"{metadata.path.name} cannot be used: it has no tensor {missing}.")
    return {
        "rope_type": "longrope",
        "rope_theta": base,
        "long_factor": long.tolist(),
        "short_factor": short.tolist(),
        "original_max_position_embeddings": original,
        "attention_factor": metadata.number("rope.scaling.attn_factor", 1.0),
    }


def _llama3(
    metadata: Metadata, factors: np.ndarray[Any, Any], base: float, rotary: int, original: int
) -> dict[str, Any]:
    """The settings of Llama 3.1's scaling that give the file's divisors of the frequencies. The file has only their
    result; those of a bend that no such settings give are refused."""
    if factors.shape != (rotary // 2,) or not (np.isfinite(factors).all() and factors.min() > 0):
        raise _strange(metadata)
    metadata.expect("rope.scaling.attn_factor", 1.0)
    metadata.expect("rope.scaling.yarn_ext_factor", 0.0)
    metadata.ignore(*_BETAS)
    wavelengths = 2 * math.pi * base ** (np.arange(0, rotary, 2) / rotary)
    factor = float(factors.max())
    if np.allclose(factors, factor, rtol=_FACTORS_TOLERANCE, atol=0):
        return {"rope_type": "linear", "factor": _rounded(factor)}
    usual = [(_LLAMA3_LOW, _LLAMA3_HIGH, context) for context in (8192, original, *_LLAMA3_CONTEXTS)]
    for low, high, context in (*usual, *_fitted(factors, factor, wavelengths)):
        bent = _llama3_factors(wavelengths, factor, low, high, context)
        if np.allclose(bent, factors, rtol=_FACTORS_TOLERANCE, atol=0):
            return {
                "rope_type": "llama3",
                "factor": _rounded(factor),
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": context,
            }
    raise _strange(metadata)


def _llama3_factors(
    wavelengths: np.ndarray[Any, Any], factor: float, low: float, high: float, context: int
) -> np.ndarray[Any, Any]:
    """See `_compute_llama3_parameters`: short waves stay, long ones are divided by `factor`, others are mixed."""
    share = np.clip((context / wavelengths - low) / (high - low), 0, 1)
    mixed: np.ndarray[Any, Any] = 1 / ((1 - share) / factor + share)
    return mixed


def _fitted(
    factors: np.ndarray[Any, Any], factor: float, wavelengths: np.ndarray[Any, Any]
) -> list[tuple[float, float, int]]:
    """Settings from the shares of the frequencies: a straight line over 1/wavelength, cut off at 0 and 1. Two settings
    have the line's two numbers, the third, the context, is free."""
    share = (1 / factors - 1 / factor) / (1 - 1 / factor)
    mixed = (share > _FACTORS_TOLERANCE) & (share < 1 - _FACTORS_TOLERANCE)
    places = 1 / wavelengths
    short, long = places[share >= 1 - _FACTORS_TOLERANCE], places[share <= _FACTORS_TOLERANCE]
    if mixed.sum() >= 2:
        slope, offset = np.polyfit(places[mixed], share[mixed], 1)
    else:  # any line that goes through the mixed one, if there is one, and is cut off at the others
        first, last = short.min(initial=2 * places.max()), long.max(initial=places.min() / 2)
        middle = (first + last) / 2 if not mixed.any() else places[mixed][0]
        height = 0.5 if not mixed.any() else share[mixed][0]
        slope = max((1 - height) / (first - middle), height / (middle - last)) if last < middle < first else 0.0
        offset = height - slope * middle
    if not slope > 0 or not offset < 0:
        return []
    return [
        (-float(offset) * _ANY_CONTEXT / float(slope), (1 - float(offset)) * _ANY_CONTEXT / float(slope), _ANY_CONTEXT)
    ]


def _rounded(factor: float) -> float:
    """Whole factors as they were meant; float32 holds them exactly."""
    return float(round(factor)) if abs(factor - round(factor)) < _FACTORS_TOLERANCE else factor


def _strange(metadata: Metadata) -> ModelLoadError:
    return ModelLoadError(
        f"{metadata.path.name} cannot be used: its tensor {FREQUENCIES} scales the rotary frequencies in a way that "
        "Keepwarm does not know (it knows that of Llama 3.1)."
    )
