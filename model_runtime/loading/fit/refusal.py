"""Refuses a model that cannot fit into the free memory, with a sentence that says what would."""

from __future__ import annotations

import torch

from model_runtime.forward.device_memory import free_device_bytes
from model_runtime.interface.config import Quantization
from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.fit.needs import Needs
from model_runtime.loading.progress import size_text
from model_runtime.native.free_memory import free_memory_bytes, free_swap_bytes

LEAST_TOKENS = 2048  # of one conversation, where no budget for caches was asked for
_FINEST_FIRST: tuple[Quantization, ...] = ("none", "int8", "shipped", "nf4")


def free_bytes(device: str) -> int:
    """What the device's weights and caches could take now."""
    on_gpu = free_device_bytes(device)
    return free_memory_bytes() if on_gpu is None else on_gpu


def swap_bytes(device: str) -> int:
    """What the machine could swap out for a model on a CPU: too slow to plan with, but not impossible."""
    return 0 if torch.device(device).type == "cuda" else free_swap_bytes()


def refuse_too_large(
    name: str,
    needs: Needs,
    mode: Quantization,
    device: str,
    cache_bytes: int | None,
    free: int,
    swap: int = 0,
    tokens: int = LEAST_TOKENS,
) -> None:
    """Raises `ModelLoadError` if weights in `mode` and caches cannot be in memory together. `cache_bytes` is the size
    that was asked for all caches; without one, there must be room for a conversation of so many `tokens`."""
    weights = needs.weights_bytes[mode]
    caches = needs.kv_token_bytes * tokens if cache_bytes is None else cache_bytes
    if weights + caches <= free + swap:
        return
    parts = size_text(weights) + " for weights"
    if caches:
        of_caches = f"for caches of {tokens:,} tokens" if cache_bytes is None else "for --device-kv-budget"
        parts += f" and {size_text(caches)} {of_caches}"
    where = f" on {device}" if device != "cpu" else ""
    raise ModelLoadError(
        f"{name} cannot be loaded: it needs {size_text(weights + caches)} of memory ({parts}), and {size_text(free)} "
        f"are free{where}{_advice(needs, mode, caches, free)}"
    )


def _advice(needs: Needs, mode: Quantization, caches: int, free: int) -> str:
    for other in _FINEST_FIRST:
        weights = needs.weights_bytes.get(other)
        if other != mode and weights is not None and weights + caches <= free:
            return f"; with --quantization {other} it needs {size_text(weights + caches)}."
    if needs.weights_bytes[mode] <= free:
        return ". Ask for a smaller --device-kv-budget, or end other programs."
    smallest = min(needs.weights_bytes, key=lambda other: needs.weights_bytes[other])
    if needs.weights_bytes[smallest] < needs.weights_bytes[mode]:
        least = f"; even with --quantization {smallest} it needs {size_text(needs.weights_bytes[smallest] + caches)}"
        return f"{least}. Choose a smaller model, or end other programs."
    return ". Choose a smaller model or one with fewer bits, or end other programs."
