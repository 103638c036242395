"""Loads the tensors of quantised layers as a checkpoint has them, whatever its format.

transformers finds and renames them as it does with plain weights; the layers that hold them cannot compute, and are
replaced when the model is complete.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    apply_renamings,
    rename_source_key,
)
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from model_runtime.interface.errors import ModelLoadError
from model_runtime.weights.checkpoint_formats.stored_format import StoredFormat
from model_runtime.weights.coded.coded_rows import Coded
from model_runtime.weights.native_experts import can_be_native
from model_runtime.weights.own_layers.formats import OwnFormat, own_format
from model_runtime.weights.own_layers.mixture import PARTS, Place, StoredMixture
from model_runtime.weights.own_layers.mxfp4_experts import METHOD as MXFP4
from model_runtime.weights.own_layers.mxfp4_experts import StoredExperts

METHOD = "keepwarm-coded"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
Tensors = dict[str, tuple[torch.dtype, list[int]]]


@register_quantization_config(METHOD)
class StoredConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The settings of a checkpoint, under the name of our own quantizer. `stored_as` is their own quant_method."""

    def __init__(self, stored_as: str = "", quant_method: str = METHOD, **settings: Any) -> None:
        self.quant_method, self.stored_as, self.settings = METHOD, stored_as, settings


class StoredLinear(nn.Module):
    """The tensors that stand for a linear layer's matrix, and its bias. GPTQ's programs write one for layers that have
    none in their family: it is added."""

    bias: torch.Tensor | None

    def __init__(
        self,
        shape: tuple[int, int],
        family_bias: nn.Parameter | None,
        tensors: Tensors,
        own: OwnFormat,
        settings: dict[str, Any],
    ) -> None:
        super().__init__()
        self.shape = shape
        self._own, self._settings, self._names = own, settings, tuple(tensors.keys() - {"bias"})
        for name, (dtype, size) in tensors.items():
            empty = torch.empty(size, dtype=dtype, device="meta")
            self.register_parameter(name, nn.Parameter(empty, requires_grad=False))
        if family_bias is not None or "bias" not in tensors:
            self.register_parameter("bias", family_bias)
        if "weight" not in tensors:  # GPT-2 initialises the weights of layers inside its blocks, loaded or not
            self.weight = torch.empty(0)

    def coded(self) -> Coded:
        """The matrix as codes and scales. Raises `ValueError` for what cannot be held."""
        parts = {name: self.get_parameter(name).detach().cpu() for name in self._names}
        return self._own.read(parts, self.shape, self._settings)


@register_quantizer(METHOD)
class StoredQuantizer(HfQuantizer):  # type: ignore[misc]
    """Puts a `StoredLinear` in the place of each linear layer for which the files have quantised tensors: the files
    know better than lists of patterns which layers these are."""

    requires_calibration = False

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        config = self.quantization_config
        settings = dict(config.settings)
        if config.stored_as == MXFP4:
            _put_experts(model)
            return
        own = own_format(StoredFormat(config.stored_as, settings))
        assert own is not None
        found = _found(kwargs["checkpoint_files"], own)
        targets = _Targets(model)
        mixtures = dict[str, dict[Place, StoredLinear]]()
        for base, tensors in found.items():
            name, place = targets.module_of(base), targets.place_of(base)
            layer = None if name is None else model.get_submodule(name)
            if place is not None:
                stored = StoredLinear(targets.shape_of(place), None, tensors, own, settings)
                mixtures.setdefault(place.module, {})[place] = stored
            elif name is not None and isinstance(layer, (nn.Linear, Conv1D)):
                rows, columns = reversed(layer.weight.shape) if isinstance(layer, Conv1D) else layer.weight.shape
                stored = StoredLinear((int(rows), int(columns)), getattr(layer, "bias", None), tensors, own, settings)
                model.set_submodule(name, stored)
            else:
                raise ModelLoadError(
                    f"{type(model).__name__} cannot be loaded: {base} is stored as {config.stored_as}, and only linear "
                    "layers and experts that are gated without biases are run in that format, not embeddings."
                )
        plain = [name for name, module in model.named_modules() if name not in mixtures and can_be_native(module)]
        if mixtures and plain:
            raise ModelLoadError(
                f"{type(model).__name__} cannot be loaded: the experts of some layers are stored as "
                f"{config.stored_as}, and those of {plain[0]} are not."
            )
        for name, parts in mixtures.items():
            try:
                model.set_submodule(name, StoredMixture(model.get_submodule(name), parts))
            except ValueError as error:
                raise ModelLoadError(f"{type(model).__name__} cannot be loaded: in {name}, {error}.") from error

    def update_weight_conversions(self, weight_conversions: list[Any], model: PreTrainedModel) -> list[Any]:
        """Leaves the matrices of experts apart that transformers would join."""
        if not any(isinstance(module, StoredMixture) for module in model.modules()):
            return list(super().update_weight_conversions(weight_conversions, model))
        return [one for one in weight_conversions if not _joins_experts(one)]

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


def names_of(model: nn.Module, kind: type[nn.Module]) -> list[str]:
    """The names of its modules of a kind. Modules that are to be replaced are not kept alive by them."""
    return [name for name, module in model.named_modules() if isinstance(module, kind)]


def _put_experts(model: PreTrainedModel) -> None:
    found = names_of(model, GptOssExperts)
    if not found:
        raise ModelLoadError(
            f"{type(model).__name__} cannot be loaded in MXFP4: only the experts of gpt-oss are run in that format."
        )
    for name in found:
        model.set_submodule(name, StoredExperts(model.get_submodule(name)))


class _Targets:
    """Which modules of a model the tensors of its checkpoint belong to."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        conversions = get_model_conversion_mapping(model)
        self._renamings = [one for one in conversions if not isinstance(one, WeightConverter)]
        self._converters = [one for one in conversions if isinstance(one, WeightConverter)]
        self._prefix, self._known = model.base_model_prefix, model.state_dict()

    def place_of(self, base: str) -> Place | None:
        """The place among the experts of a layer; None for what is no part of experts that are all gated alike."""
        key = f"{base}.weight"
        renamed, joined = rename_source_key(key, self._renamings, self._converters, self._prefix, self._known)
        module, _, projection = renamed.rpartition(".")
        if joined is None or renamed not in self._known or not can_be_native(self._model.get_submodule(module)):
            return None
        converter = next(one for one in self._converters if joined in one.source_patterns and _joins_experts(one))
        parts = {"gate_up_proj": PARTS[:2], "down_proj": PARTS[2:]}[projection]
        *_, expert, name, _ = apply_renamings(key, self._renamings).split(".")
        return Place(module, int(expert), parts[converter.source_patterns.index(joined)], name)

    def shape_of(self, place: Place) -> tuple[int, int]:
        """`[N, K]` of the matrix that belongs there."""
        experts: Any = self._model.get_submodule(place.module)
        _, hidden, inner = experts.down_proj.shape
        return (hidden, inner) if place.part == "down" else (inner, hidden)

    def module_of(self, base: str) -> str | None:
        """The module that a plain checkpoint's `base.weight` would belong to alone; None if there is none."""
        key = f"{base}.weight"
        renamed, joined = rename_source_key(key, self._renamings, self._converters, self._prefix, self._known)
        if renamed not in self._known and key in self._known:
            renamed, joined = key, None
        is_own = joined is None and renamed in self._known and renamed.endswith(".weight")
        return renamed.removesuffix(".weight") if is_own else None


def _joins_experts(conversion: Any) -> bool:
    """Whether it stacks the matrices of experts, gate above up."""
    kinds = [type(operation) for operation in getattr(conversion, "operations", ())]
    return kinds in ([MergeModulelist], [MergeModulelist, Concatenate]) and "experts" in conversion.target_patterns[0]


def _found(files: Iterable[str], own: OwnFormat) -> dict[str, Tensors]:
    """The parts of each quantised matrix: by the name of its layer in the checkpoint, by their own names."""
    parts = dict[str, Tensors]()
    for path in files:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - it is not a mapping
                base, _, name = key.rpartition(".")
                if name in own.parts or name == "bias":
                    entry = file.get_slice(key)
                    dtype = _DTYPES.get(str(entry.get_dtype()))
                    if dtype is not None:
                        parts.setdefault(base, {})[name] = (dtype, list(entry.get_shape()))
    marked = {base: tensors for base, tensors in parts.items() if not own.marks.isdisjoint(tensors)}
    for tensors in marked.values():
        for mark in own.marks.intersection(tensors):
            for needed in own.needs[mark]:
                tensors.setdefault(needed, (torch.uint8, []))  # transformers will say that it is missing
        if "weight_scale" in tensors and not {"weight", "weight_packed"}.intersection(tensors):
            tensors["weight"] = (torch.uint8, [])
    return marked
