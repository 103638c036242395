"""The bits in which a checkpoint says that its weights are stored, and what `--quantization` means for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model_runtime.interface.config import Quantization
from model_runtime.interface.errors import ModelLoadError
from model_runtime.weights.checkpoint_formats import compressed_settings
from model_runtime.weights.checkpoint_formats.packages import missing_packages, packages_of

FP8_METHODS = frozenset({"fp8", "mxfp8"})
_NAMES = {
    "fp8": "8-bit FP8",
    "mxfp8": "8-bit MXFP8",
    "mxfp4": "4-bit MXFP4",
    "awq": "AWQ",
    "gptq": "GPTQ",
    "fbgemm_fp8": "8-bit FP8 (fbgemm)",
}
# Formats that our own layers read on every device. On a GPU a format's package comes first, where it is installed.
OWN_METHODS = frozenset({"gptq", "awq", "compressed-tensors", "fbgemm_fp8"})
# Formats whose weights can be made 16- or 32-bit numbers again while they are loaded.
_DEQUANTISED = FP8_METHODS | OWN_METHODS | {"bitsandbytes", "mxfp4"}


@dataclass(frozen=True, slots=True)
class StoredFormat:
    """A `quantization_config`. `method` is its `quant_method`, `settings` the whole of it."""

    method: str
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """For people: "8-bit FP8", "4-bit NF4 (bitsandbytes)", "4-bit GPTQ"."""
        if self.method == "bitsandbytes":
            kind = str(self.settings.get("bnb_4bit_quant_type", "fp4")).upper()
            return f"4-bit {kind} (bitsandbytes)" if self.bits == 4 else "8-bit (bitsandbytes)"
        if self.method == "compressed-tensors":
            kinds = compressed_settings.kinds(self.settings)
            return f"{' and '.join(kinds)} compressed-tensors" if kinds else "compressed-tensors"
        name = _NAMES.get(self.method, self.method)
        return f"{self.bits}-bit {name}" if self.bits and "-bit" not in name else name

    @property
    def bits(self) -> int | None:
        """Bits of a weight, where the config says it in one number."""
        if self.method == "bitsandbytes":
            return 4 if self.settings.get("load_in_4bit") else 8
        for key in ("bits", "w_bit", "nbits"):
            if isinstance(value := self.settings.get(key), int):
                return value
        return None

    @property
    def is_fp8(self) -> bool:
        """Whether our own FP8 layers run it."""
        return self.method in FP8_METHODS

    @property
    def is_own(self) -> bool:
        """Whether our own layers read it, without the package that made it."""
        return self.method in OWN_METHODS or (self.method == "bitsandbytes" and self.bits == 8)

    def is_own_on(self, device: str, dequantises: bool) -> bool:
        """Whether our own layers read it for this device: where no package is there to run it on a GPU, and for
        weights that are de-quantised. MXFP4 on a CPU only, since transformers de-quantises it."""
        if self.method == "mxfp4":
            return device == "cpu" and not dequantises
        if device == "cpu" or dequantises:
            return self.is_own
        has_package = bool(packages_of(self.method)) and not missing_packages(self.method)
        return self.method in OWN_METHODS and not has_package

    def path_on(self, device: str) -> str | None:
        """A sentence about what runs it on a GPU, where its package could do so as well as our own kernels."""
        packages = packages_of(self.method)
        if device == "cpu" or self.method not in OWN_METHODS or not packages:
            return None
        if not missing_packages(self.method):
            return f"The {self.name} weights run in {packages[-1]}'s kernels, not in our own."
        return (
            f"The {self.name} weights run without {' and '.join(packages)}: where that is installed, "
            f"{packages[-1]}'s kernels run them."
        )

    def is_plain_on(self, device: str) -> bool:
        """Whether "auto" de-quantises it there: weights for rounded activations, which nothing of ours runs. On a CPU
        they are refused, since de-quantised weights take twice the memory of a GPU's."""
        is_rounded = self.method == "compressed-tensors" and compressed_settings.rounded_activations(self.settings)
        return device != "cpu" and bool(is_rounded)

    def mode_for(self, asked: Quantization, device: str) -> Quantization:
        """ "shipped", or "none" for de-quantised weights. Raises `ModelLoadError` for a setting that contradicts the
        checkpoint: quantising twice would lose more than either setting says."""
        if asked in ("auto", "shipped"):
            return "none" if self.is_plain_on(device) else "shipped"
        if asked == "none":
            if self.method in _DEQUANTISED:
                return "none"
            raise ModelLoadError(
                f"This model is stored as {self.name}, which cannot be de-quantised here. Leave --quantization out to "
                "run it as it is stored."
            )
        own = {"nf4": ("4-bit NF4 (bitsandbytes)",), "int8": ("8-bit (bitsandbytes)",)}[asked]
        if self.name in own:
            return "shipped"
        raise ModelLoadError(
            f"This model is stored as {self.name}: --quantization {asked} would quantise it a second time. Leave "
            "--quantization out to run it as it is stored."
        )


def stored_format(config: Mapping[str, Any]) -> StoredFormat | None:
    """What `config.json` says, also of a text model inside a composite one; None for plain numbers. Raises
    `ModelLoadError` for settings without a method."""
    for level in (config, *(value for key, value in config.items() if key in ("text_config", "llm_config"))):
        settings = level.get("quantization_config") if isinstance(level, Mapping) else None
        if settings is None:
            continue
        if not isinstance(settings, Mapping):
            raise ModelLoadError("The model's quantization_config is not a list of settings.")
        is_bitsandbytes = settings.get("load_in_4bit") or settings.get("load_in_8bit")
        method = "bitsandbytes" if is_bitsandbytes else settings.get("quant_method")
        if not isinstance(method, str):
            raise ModelLoadError(
                "The model's config says that its weights are quantised, but not how: its quantization_config has no "
                "quant_method."
            )
        return StoredFormat(method, settings)
    return None
