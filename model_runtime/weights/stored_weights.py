"""Weights on disk at their shipped precision: one safetensors file, some matrices as 4-bit or 8-bit blocks.

A parameter `x` is stored as `x` (dense), as `x.q4` + `x.scale` + `x.minimum`, as `x.q8` + `x.scale`, or as the bytes of
ggml's other blocks, `x.ggml_Q4_K` and so on. The blocks hold the file's own values and are not packed for a processor,
so that one cache serves any CPU.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from model_runtime.weights.ggml_blocks import GgmlBlocks
from model_runtime.weights.q4_blocks import Q4Blocks, Q8Blocks

WEIGHTS_FILE = "blocks.safetensors"
_GGML = "ggml_"

Packable = torch.Tensor | Q4Blocks | Q8Blocks
Stored = Packable | GgmlBlocks


def save_weights(weights: dict[str, Stored], directory: Path) -> None:
    """Writes `blocks.safetensors`."""
    flat: dict[str, torch.Tensor] = {}
    for name, stored in weights.items():
        if isinstance(stored, Q4Blocks):
            parts = {f"{name}.q4": stored.nibbles, f"{name}.scale": stored.scale, f"{name}.minimum": stored.minimum}
        elif isinstance(stored, Q8Blocks):
            parts = {f"{name}.q8": stored.codes, f"{name}.scale": stored.scale}
        elif isinstance(stored, GgmlBlocks):
            parts = {f"{name}.{_GGML}{stored.kind}": stored.rows}
        else:
            parts = {name: stored}
        flat |= {key: tensor.contiguous() for key, tensor in parts.items()}
    save_file(flat, directory / WEIGHTS_FILE, metadata={"format": "pt"})


def load_weights(directory: Path) -> dict[str, Stored]:
    """Reads what `save_weights` wrote. Blocks and matrices are views of the mapped file, which stays mapped as long as
    one of them is alive: keep copies or converted tensors only."""
    flat = load_file(directory / WEIGHTS_FILE)
    weights: dict[str, Stored] = {}
    for key, tensor in flat.items():
        name, _, kind = key.rpartition(".")
        if kind == "q4":
            weights[name] = Q4Blocks(tensor, flat[f"{name}.scale"], flat[f"{name}.minimum"])
        elif kind == "q8":
            weights[name] = Q8Blocks(tensor, flat[f"{name}.scale"])
        elif kind.startswith(_GGML):
            weights[name] = GgmlBlocks(tensor, kind.removeprefix(_GGML))
        elif kind not in ("scale", "minimum"):
            weights[key] = tensor.clone() if tensor.ndim < 2 else tensor
    return weights


def dense(stored: Stored) -> torch.Tensor:
    """The weights as numbers: blocks as float32, dense tensors unchanged."""
    return stored if isinstance(stored, torch.Tensor) else stored.dequantise()


def halved(stored: Stored) -> Packable:
    """For kernels that have no use for ggml's other blocks: these as float16, or as float32 if they exceed it."""
    if not isinstance(stored, GgmlBlocks):
        return stored
    numbers = stored.dequantise()
    halves = numbers.to(torch.float16)
    return halves if torch.isfinite(halves).all() else numbers
