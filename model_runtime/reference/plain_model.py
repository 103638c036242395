"""A checkpoint with packed matrices as transformers' plain model, its weights de-quantised by their formulas."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.auto_factory import _get_model_class
from transformers.pytorch_utils import Conv1D

from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.checkpoint import refuse_missing
from model_runtime.reference.plain_weights import plain_tensors
from model_runtime.weights.checkpoint_formats.stored_format import StoredFormat


def plain_model(directory: Path, stored: StoredFormat, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """In eval mode; `stored` is the checkpoint's own format. The weights of mixtures of experts are joined by
    transformers, as those of plain checkpoints are. Biases that the family does not have are added. Raises
    `ModelLoadError`, and what transformers raises."""
    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    for level in (config, config.get_text_config()):
        if hasattr(level, "quantization_config"):
            del level.quantization_config
    kind = _class_for(config)
    tensors, unpacked = plain_tensors(directory, stored.method, stored.settings, dtype)
    for name in _with_inputs_first(kind, config, unpacked):
        tensors[name] = tensors[name].t().contiguous()
    biases = {name: tensor for name, tensor in tensors.items() if name.endswith(".bias")}
    model, report = kind.from_pretrained(
        None,
        config=config,
        state_dict=tensors,
        dtype=dtype,
        device_map={"": device},
        output_loading_info=True,
        trust_remote_code=False,
        use_safetensors=True,
    )
    refuse_missing(report, f"The checkpoint {directory.name}")
    for name in biases.keys() & set(report["unexpected_keys"]):
        _add_bias(model, name.removesuffix(".bias"), biases[name])
    loaded: PreTrainedModel = model.eval()
    return loaded


def model_class(directory: Path) -> Any:
    """`AutoModelForCausalLM`, or for a composite checkpoint that it does not know the class that the config names."""
    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    if type(config) in AutoModelForCausalLM._model_mapping:
        return AutoModelForCausalLM
    named = (config.architectures or ["AutoModelForCausalLM"])[0]
    return getattr(transformers, str(named), AutoModelForCausalLM)


def _class_for(config: PretrainedConfig) -> Any:
    if type(config) in AutoModelForCausalLM._model_mapping:
        return _get_model_class(config, AutoModelForCausalLM._model_mapping)
    found = getattr(transformers, str((config.architectures or [""])[0]), None)
    if found is None:
        raise ModelLoadError(f"transformers has no class for {type(config).__name__}.")
    return found


def _with_inputs_first(kind: Any, config: PretrainedConfig, unpacked: Iterable[str]) -> list[str]:
    """Those of the de-quantised matrices that belong to GPT-2's kind of layers, which hold theirs as `[K, N]`. What the
    checkpoint has plain lies so already."""
    with init_empty_weights():
        model = kind._from_config(config)
    names = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)]
    return [one for one in unpacked if any(one == name or name.endswith(f".{one}") for name in names)]


def _add_bias(model: PreTrainedModel, name: str, bias: torch.Tensor) -> None:
    layer = model.get_submodule(name)
    if not isinstance(layer, torch.nn.Linear) or tuple(bias.shape) != (layer.out_features,):
        raise ModelLoadError(f"{type(model).__name__} has no place for the bias of {name}.")
    layer.bias = torch.nn.Parameter(bias.to(layer.weight), requires_grad=False)
