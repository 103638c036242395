"""Chooses the precision from the user's setting, the source's format and the device's abilities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import BitsAndBytesConfig

from model_runtime.interface.config import Quantization
from model_runtime.weights.checkpoint_formats.stored_format import StoredFormat


@dataclass(frozen=True, slots=True)
class Precision:
    """`mode` is never "auto". `compute_dtype` is that of activations, keys and values; `note` explains the mode."""

    mode: Quantization
    compute_dtype: torch.dtype
    note: str | None


def choose_precision(
    asked: Quantization, device: str, has_shipped_grid: bool, stored: StoredFormat | None = None
) -> Precision:
    """`has_shipped_grid`: the source is a GGUF file. `stored`: the format of a quantised checkpoint. Raises
    `ModelLoadError` for a setting that contradicts the checkpoint's own."""
    mode, note = asked, None
    if stored is not None:
        mode = stored.mode_for(asked, device)
        why = "the checkpoint is already quantised"
        if stored.is_plain_on(device):
            why = f"its {stored.name} weights are made for rounded activations, which do not run here"
    elif asked == "auto":
        mode = "shipped" if has_shipped_grid else "nf4"
        why = "a GGUF keeps its own grid" if has_shipped_grid else "its weights are 16- or 32-bit numbers"
    if mode != asked:
        note = f"Quantization {asked}: {mode}, because {why}."
    return Precision(mode, compute_dtype(device), note)


def compute_dtype(device: str) -> torch.dtype:
    """bfloat16 on CUDA devices that support it natively, else float16; float32 on the CPU.

    On a CPU, NF4 is de-quantised layer by layer. Measured on two cores with 135M parameters: a step took
    41 ms with float32 activations and compute and 198 ms with bfloat16 compute; bfloat16 throughout read 1,748 tokens
    in 6.0 s against 4.4 s, and CPU attention is slower on a bfloat16 KV.
    """
    if not device.startswith("cuda"):
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def bitsandbytes_config(precision: Precision) -> BitsAndBytesConfig | None:
    """NF4 with double quantization, or int8 with the library's outlier threshold; None for every other mode. The
    compute dtype of NF4 is set explicitly, because the library's default is float32 on every device."""
    if precision.mode == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    if precision.mode != "nf4":
        return None
    dtype = precision.compute_dtype
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def dtype_name(dtype: torch.dtype) -> str:
    """ "float32", "bfloat16"..."""
    return str(dtype).removeprefix("torch.")
