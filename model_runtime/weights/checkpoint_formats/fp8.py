"""FP8 checkpoints at their own 8 bits on any device: weights stay FP8 and are de-quantised layer by layer.

transformers multiplies FP8 only on a GPU, with kernels that it downloads from the hub, and de-quantises the whole model
everywhere else. Here a layer's weights become numbers of the activations' dtype when the layer runs, so memory holds 8
bits a weight. Activations are not rounded to FP8 as those kernels do, so the result is that of the de-quantised model.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import FineGrainedFP8Config, PreTrainedModel
from transformers.integrations.finegrained_fp8 import FP8Experts, FP8GroupedLinear, FP8Linear
from transformers.quantizers import register_quantization_config, register_quantizer
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

from model_runtime.interface.errors import ModelLoadError
from model_runtime.weights.checkpoint_formats.fp8_experts import refuse_other_experts
from model_runtime.weights.checkpoint_formats.stored_format import StoredFormat

METHOD = "keepwarm-fp8"
# A half has the same exponents as E4M3 shifted by 8, so its bits are those of E4M3 moved into place, times 2^8.
_HALF_FACTOR = 256.0
_SIGN_AND_LOW_BITS = ~(1 << 14)
# transformers wraps these once more for every layer of every model that it loads, until Python refuses the recursion.
_OWN_INIT, _OWN_FORWARD = inspect.unwrap(FP8Experts.__init__), inspect.unwrap(FP8Experts.forward)


@register_quantization_config(METHOD)
class Fp8Config(FineGrainedFP8Config):  # type: ignore[misc]
    """The settings of an FP8 checkpoint, as transformers reads them, under the name of our own quantizer."""


@register_quantizer(METHOD)
class Fp8Quantizer(FineGrainedFP8HfQuantizer):  # type: ignore[misc]
    """Loads FP8 tensors as they are, on any device, into layers that de-quantise themselves."""

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is needed beyond torch."""

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        own = dict(model.named_modules())
        name = type(model).__name__
        FP8Experts.__init__, FP8Experts.forward = _OWN_INIT, _OWN_FORWARD
        try:
            super()._process_model_before_weight_loading(model, **kwargs)
        except AssertionError as error:
            raise ModelLoadError(
                f"{name} cannot run in FP8: its experts have biases, which the FP8 experts do not add. --quantization "
                "none runs it de-quantised."
            ) from error
        experts = {key: module for key, module in model.named_modules() if isinstance(module, FP8Experts)}
        refuse_other_experts(name, {key: (own[key], module) for key, module in experts.items()})

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        super()._process_model_after_weight_loading(model, **kwargs)
        for name, module in model.named_modules():
            if isinstance(module, FP8GroupedLinear):
                raise ModelLoadError(
                    f"{type(model).__name__} has grouped FP8 layers ({name}), which are not supported."
                )
            if isinstance(module, (FP8Linear, FP8Experts)):
                _refuse_other_numbers(name, module)
                own = _Fp8Linear if isinstance(module, FP8Linear) else _Fp8Experts
                module.__class__ = type(type(module).__name__, (own, type(module)), {})
        return model


def fp8_settings(stored: StoredFormat, dtypes: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """What has to change in a checkpoint's settings so that our own layers run it. `dtypes` are names and safetensors
    dtypes of its tensors: scales of one byte are exponents, whether or not the settings say so."""
    changes = {"quant_method": METHOD}
    if any(name.endswith("scale_inv") and dtype in ("U8", "F8_E8M0") for name, dtype in dtypes):
        changes["scale_fmt"] = "ue8m0"
    return changes


class _Fp8Linear:
    """`nn.Linear` on FP8 weights `(N, K)`: `[.., K]` to `[.., N]` of the same dtype."""

    weight: torch.Tensor
    weight_scale_inv: torch.Tensor
    block_size: tuple[int, int] | None
    bias: torch.Tensor | None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = dequantised(self.weight, self.weight_scale_inv, self.block_size, x.dtype)
        return functional.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))


class _Fp8Experts:
    """The experts of a layer, each de-quantised while it runs: never with transformers' kernels for FP8."""

    block_size: tuple[int, int] | None
    forward = _OWN_FORWARD

    def linear(
        self, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, activation_scale: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`[rows, K]` to `[rows, N]` of one expert."""
        if weight.element_size() > 1:
            return functional.linear(x, weight)
        return functional.linear(x, dequantised(weight, scale, self.block_size, x.dtype))


def dequantised(
    weight: torch.Tensor, scale: torch.Tensor, block: tuple[int, int] | None, dtype: torch.dtype
) -> torch.Tensor:
    """E4M3 weights `(N, K)` times their scales, rounded once to `dtype`.

    `scale` is one number, one a row `(N, 1)`, or one a block of `block` numbers; the last block of a row or column may
    be cut off. Scales of one byte are exponents: E8M0, 2^(byte - 127).
    """
    factors = _numbers_of(scale)
    if weight.device.type == "cpu":
        # torch converts one number at a time here: 256 ms for 16 M weights on two cores, against 36 ms.
        bits = (weight.view(torch.int8).to(torch.int16) << 7) & _SIGN_AND_LOW_BITS
        numbers, factors = bits.view(torch.float16).to(torch.float32), factors * _HALF_FACTOR
    else:
        numbers = weight.to(torch.float16)
    if factors.numel() > 1 and block is not None:
        rows, columns = weight.shape
        if rows % block[0] or columns % block[1]:
            factors = factors.repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]
        else:
            numbers = numbers.view(rows // block[0], block[0], columns // block[1], block[1])
            factors = factors[:, None, :, None]
    if numbers.dtype == torch.float32 == dtype:
        return numbers.mul_(factors).view(weight.shape)
    return torch.mul(numbers, factors, out=torch.empty_like(numbers, dtype=dtype)).view(weight.shape)


def _numbers_of(scale: torch.Tensor) -> torch.Tensor:
    if scale.dtype == torch.uint8:
        return (scale.to(torch.float32) - 127.0).exp2()
    return scale.to(torch.float32)


def _refuse_other_numbers(name: str, module: nn.Module) -> None:
    """Raises `ModelLoadError` for weights in another format than E4M3, and for NaN among them: `dequantised` reads
    every byte as a number."""
    for key, parameter in module.named_parameters(recurse=False):
        if parameter.element_size() > 1 or key.endswith("scale_inv"):
            continue
        if parameter.dtype != torch.float8_e4m3fn:
            raise ModelLoadError(f"The weights of {name} are {parameter.dtype} numbers; only FP8 in E4M3 can be read.")
        if ((parameter.view(torch.uint8) & 0x7F) == 0x7F).any():
            raise ModelLoadError(f"The weights of {name} are damaged: some are not numbers.")
