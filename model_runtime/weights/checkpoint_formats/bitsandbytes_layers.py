"""How bitsandbytes' 4-bit layers multiply, whoever quantised them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


def set_four_bit_products(model: nn.Module, dtype: torch.dtype) -> None:
    """Makes all 4-bit layers de-quantise to `dtype` and multiply in it.

    A checkpoint brings the dtype of whoever made it, which rounds a float32 model's activations to 16 bits. On CPUs
    with AVX512-BF16, bitsandbytes would also pack a layer at its first forward and then round activations, weights and
    scales to bfloat16: a row's result then depends on the rounding error of the kernel before it, so a cached answer
    differs from a read one (measured on tiny models: logits off by 0.1 standard deviations from the de-quantised
    model's, and by 0.01 between two orders of the same additions). Without packing both are exact; a product of one
    row takes 71 ms instead of 38 ms for 4,096 x 4,096 on two cores.
    """
    modules: Iterator[Any] = model.modules()
    for module in modules:
        if type(module).__name__ != "Linear4bit":  # importing bitsandbytes costs a second
            continue
        module.compute_dtype, module.compute_type_is_set = dtype, True
        module.support_avx512bf16_for_cpu = False
        state = getattr(module.weight, "quant_state", None)
        if state is not None:
            state.dtype = dtype
