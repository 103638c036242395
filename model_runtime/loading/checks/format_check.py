"""Checks, from a checkpoint's config alone, that the bits in which its weights are stored can be run here."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence

from torch import nn
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, AutoQuantizationConfig

from model_runtime.interface.errors import ModelLoadError
from model_runtime.weights.checkpoint_formats.compressed_settings import rounded_activations
from model_runtime.weights.checkpoint_formats.packages import missing_packages
from model_runtime.weights.checkpoint_formats.stored_format import StoredFormat
from model_runtime.weights.native_experts import can_be_native
from model_runtime.weights.own_layers.formats import OwnFormat, own_format

_OURS = "keepwarm-"  # methods of our own layers, which no checkpoint can be stored as
_OTHER_FILES = ("quantize_config.json", "hf_quant_config.json", "quant_config.json")
_QUANTISED_NAMES = (".weight", ".qweight", ".qzeros", ".weight_packed", "_blocks")
_QUANTISED_DTYPES = frozenset({"I8", "U8", "I16", "I32"})


def check_format(name: str, stored: StoredFormat, device: str, dequantises: bool) -> None:
    """Raises `ModelLoadError` that names what is missing to run the format on `device`. `dequantises`: its weights
    become 16- or 32-bit numbers as they are loaded."""
    own = own_format(stored)
    missing = missing_packages(stored.method)
    is_for_package = bool(missing) and own is not None and own.refusal(stored.settings) is not None
    if stored.is_own_on(device, dequantises) and (device == "cpu" or dequantises or not is_for_package):
        if own is not None:
            _check_own(name, stored, own, dequantises)
        return
    if stored.is_fp8:
        return
    if _key(stored) not in AUTO_QUANTIZER_MAPPING or stored.method.startswith(_OURS):
        raise ModelLoadError(
            f"{name} is stored as '{stored.method}', a format that this version cannot read. Choose another checkpoint "
            "of this model."
        )
    if missing and not (dequantises and stored.method == "mxfp4"):
        can_be_plain = stored.method == "mxfp4" or (own is not None and not is_for_package)
        hint = "or run it de-quantised with --quantization none" if can_be_plain else None
        raise ModelLoadError(_refusal(name, stored, missing, hint))
    if dequantises:
        return
    try:
        settings = {key: value for key, value in stored.settings.items() if not key.startswith("_")}
        quantizer = AUTO_QUANTIZER_MAPPING[_key(stored)]
        quantizer(AutoQuantizationConfig.from_dict(settings), pre_quantized=True).validate_environment(
            device_map={"": device}
        )
    except Exception as error:  # every quantiser has its own ways to say what it lacks
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelLoadError(
            f"{name} is stored as {stored.name}, which cannot be run on {device}: {reason.rstrip('.')}."
        ) from error


def _check_own(name: str, stored: StoredFormat, own: OwnFormat, dequantises: bool) -> None:
    why = own.refusal(stored.settings)
    if why is not None:
        raise ModelLoadError(
            f"{name} is stored as {stored.name} with {why}, which this version cannot read. Choose another "
            "checkpoint of this model."
        )
    rounded = rounded_activations(stored.settings) if stored.method == "compressed-tensors" else None
    if rounded is not None and not dequantises:
        raise ModelLoadError(
            f"{name} is stored as {stored.name} for activations that are rounded to {rounded}, which is not done here. "
            "--quantization none runs its weights de-quantised, with activations that are not rounded."
        )


def check_experts(name: str, stored: StoredFormat, model: nn.Module) -> None:
    """Raises `ModelLoadError` if the model's experts cannot be run in the format. `model` may be on the meta device.
    Settings that speak of experts may leave them out: then only the tensors tell."""
    if own_format(stored) is None or stored.method == "bitsandbytes" or "expert" in str(stored.settings):
        return
    for layer, module in model.named_modules():
        are_experts = hasattr(module, "num_experts") and any(p.ndim == 3 for p in module.parameters(recurse=False))
        if are_experts and not can_be_native(module):
            raise ModelLoadError(
                f"{name} is stored as {stored.name}. Its experts ({layer}) cannot be run in that format: they have "
                "biases, an activation of their own, or sizes that are no multiple of 32. Choose another checkpoint of "
                "this model."
            )


def check_plain(
    name: str, dtypes: Iterable[tuple[str, str]], files: Container[str], config: Mapping[str, object]
) -> None:
    """Raises `ModelLoadError` for a checkpoint whose weights are quantised although its config does not say so: they
    would be read as plain numbers, which is noise. `dtypes` are names and safetensors dtypes of its tensors."""
    for tensor, dtype in dtypes:
        is_known = dtype.startswith(("F8_", "F6_", "F4"))
        if not is_known and not (dtype in _QUANTISED_DTYPES and tensor.endswith(_QUANTISED_NAMES)):
            continue
        said = next((one for one in _OTHER_FILES if one in files), None)
        where = f" {said} describes a format that this version cannot read." if said else ""
        if "compression_config" in config:
            where = " It has an older form of compressed-tensors (compression_config), which is not read."
        raise ModelLoadError(
            f"{name} cannot be loaded: its weights are quantised ({tensor} is {dtype}), but its config has no "
            f"quantization_config.{where}"
        )


def _refusal(name: str, stored: StoredFormat, missing: Sequence[str], hint: str | None) -> str:
    are_missing = f"packages {' and '.join(missing)} are" if len(missing) > 1 else f"package {missing[0]} is"
    return (
        f"{name} is stored as {stored.name}; to run that, the Python {are_missing} missing. Install "
        f"{'them' if len(missing) > 1 else 'it'} with `pip install {' '.join(missing)}`, "
        f"{hint or 'or choose another checkpoint'}."
    )


def _key(stored: StoredFormat) -> str:
    """The name of its quantiser in transformers."""
    return f"bitsandbytes_{stored.bits}bit" if stored.method == "bitsandbytes" else stored.method
