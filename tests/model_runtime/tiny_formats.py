"""Tiny checkpoints in the formats that quantised models are published in, made from a plain one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

E4M3_LARGEST = 448.0
Block = tuple[int, int]


def fp8_checkpoint(source: Path, target: Path, block: Block | None, *, exponents: bool = False, **more: Any) -> Path:
    """FP8 in E4M3 as DeepSeek and Qwen publish it: matrices with a scale for each block, or one for the whole matrix.
    `exponents` writes scales of one byte, as MXFP8 has them."""

    def packed(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        codes, scale = to_fp8(weight, block, exponents)
        stored = ((scale.log2() + 127).to(torch.uint8)) if exponents else scale
        return {name: codes, f"{name}_scale_inv": stored}

    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": block, **more}
    return _rewritten(source, target, packed, settings)


def to_fp8(weight: torch.Tensor, block: Block | None, exponents: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """E4M3 codes `(N, K)` and float32 scales, `(N / rows, K / columns)` rounded up, or one number."""
    rows, columns = weight.shape
    high, wide = block or (rows, columns)
    padded = torch.zeros(-(-rows // high) * high, -(-columns // wide) * wide)
    padded[:rows, :columns] = weight
    blocks = padded.view(-(-rows // high), high, -(-columns // wide), wide)
    scale = blocks.abs().amax((1, 3)).clamp(min=1e-8) / E4M3_LARGEST
    if exponents:
        scale = scale.log2().ceil().exp2()
    codes = (blocks / scale[:, None, :, None]).view(padded.shape)[:rows, :columns].to(torch.float8_e4m3fn)
    return codes.contiguous(), scale if block else scale.view(())


def bitsandbytes_checkpoint(source: Path, target: Path, **settings: Any) -> Path:
    """Quantised on the CPU by bitsandbytes itself and saved by transformers."""
    shutil.copytree(source, target)
    model = AutoModelForCausalLM.from_pretrained(
        source, quantization_config=BitsAndBytesConfig(**settings), device_map={"": "cpu"}
    )
    model.save_pretrained(target)
    return target


def with_settings(source: Path, target: Path, settings: dict[str, Any] | None, **more: Any) -> Path:
    """A copy whose config has this `quantization_config`, and `more` entries beside it."""
    shutil.copytree(source, target)
    path = target / "config.json"
    config = json.loads(path.read_text())
    config |= more if settings is None else {"quantization_config": settings, **more}
    path.write_text(json.dumps(config))
    return target


def _rewritten(
    source: Path,
    target: Path,
    packed: Callable[[str, torch.Tensor], dict[str, torch.Tensor]],
    settings: dict[str, Any],
) -> Path:
    """A copy with the matrices of all layers replaced by what `packed` makes of them."""
    with_settings(source, target, settings)
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in load_file(source / "model.safetensors").items():
        is_matrix = name.endswith("_proj.weight") and weight.ndim == 2
        tensors |= packed(name, weight.float()) if is_matrix else {name: weight}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target
