"""Converts a GGUF file once to a directory with transformers' tokenizer and config and the file's own blocks.

transformers takes 22 s to read a GGUF of 135M parameters, at every start, and converts it to float32. For the
architectures below, conversion only renames tensors and permutes rows, so their blocks are kept unchanged. All others
go through transformers' own loader and are de-quantised.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor, dequantize, get_tensor_name_map
from gguf.constants import MODEL_ARCH_NAMES
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig, PretrainedConfig

from model_runtime.architecture.shape_check import check_config
from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.checkpoint import progress_on_terminals_only, refuse_missing
from model_runtime.loading.checks.gguf_check import check_gguf
from model_runtime.loading.checks.gguf_header import read_gguf_header
from model_runtime.weights.q4_blocks import read_q4_0, read_q4_1, read_q8_0
from model_runtime.weights.stored_weights import Stored, save_weights

FORMAT_VERSION = 1
SOURCE_FILE = "source.json"
_EXACT_ARCHITECTURES = ("llama", "qwen2", "qwen3")
_DENSE = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)
_BLOCKS: dict[GGMLQuantizationType, Callable[[torch.Tensor], Stored]] = {
    GGMLQuantizationType.Q4_0: read_q4_0,
    GGMLQuantizationType.Q4_1: read_q4_1,
    GGMLQuantizationType.Q8_0: read_q8_0,
}


def convert_gguf(gguf_path: Path, directory: Path) -> None:
    """Fills `directory` with tokenizer, config, `source.json` and weights.

    Raises `ModelLoadError` when the file cannot be read as a GGUF, and whatever transformers raises for missing parts.
    """
    parent, name = str(gguf_path.parent), gguf_path.name
    header = read_gguf_header(gguf_path)
    check_gguf(name, header)
    try:
        reader = GGUFReader(gguf_path)
    except (ValueError, IndexError, KeyError) as error:
        raise ModelLoadError(f"{name} is not a GGUF file, or is incomplete. Download it again.") from error
    AutoTokenizer.from_pretrained(parent, gguf_file=name, trust_remote_code=False).save_pretrained(directory)
    architecture = header.architecture
    if architecture in _EXACT_ARCHITECTURES:
        config = AutoConfig.from_pretrained(parent, gguf_file=name, trust_remote_code=False)
        check_config(config, name)
        weights, notes = _read_blocks(reader, architecture, config)
        config.architectures = [_model_class(config)]
        config.save_pretrained(directory)
        save_weights(weights, directory)
    else:
        notes = [f"GGUF files of the architecture '{architecture}' run de-quantised."]
        settings = GgufConfig(dequantize=True)
        with progress_on_terminals_only():
            model, report = AutoModelForCausalLM.from_pretrained(
                parent,
                gguf_file=name,
                quantization_config=settings,
                dtype=torch.float16,
                output_loading_info=True,
                trust_remote_code=False,
                use_safetensors=True,
            )
            refuse_missing(report, name)
            check_config(model.config, name)
            model.save_pretrained(directory)
    types = sorted({tensor.tensor_type.name for tensor in reader.tensors if _is_layer_matrix(tensor)})
    source = {"has_blocks": architecture in _EXACT_ARCHITECTURES, "matrix_types": types, "notes": notes}
    (directory / SOURCE_FILE).write_text(json.dumps(source), encoding="utf-8")


def _read_blocks(
    reader: GGUFReader, architecture: str, config: PretrainedConfig
) -> tuple[dict[str, Stored], list[str]]:
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    number = next(key for key, value in MODEL_ARCH_NAMES.items() if value == architecture)
    names = get_tensor_name_map(number, config.num_hidden_layers)
    weights: dict[str, Stored] = {}
    requantised: dict[str, int] = {}
    config.tie_word_embeddings = "output.weight" not in tensors
    for parameter, shape in _parameter_shapes(config).items():
        if parameter == "lm_head.weight" and config.tie_word_embeddings:
            continue
        base, _, suffix = parameter.rpartition(".")
        tensor = tensors.get(f"{names.get_name(base)}.{suffix}")
        if tensor is None:
            raise ModelLoadError(f"The file has no tensor for {parameter}.")
        found = tuple(int(size) for size in reversed(tensor.shape.tolist()))
        if found != shape:
            raise ModelLoadError(
                f"The file's tensor {tensor.name} has the shape {list(found)}, but its metadata describes a model with "
                f"{list(shape)} there. Download it again, or from another source."
            )
        weights[parameter] = _read(tensor, architecture, config)
        if tensor.tensor_type not in _DENSE and tensor.tensor_type not in _BLOCKS:
            requantised[tensor.tensor_type.name] = requantised.get(tensor.tensor_type.name, 0) + 1
    notes = [f"{count} tensors of type {kind} run de-quantised." for kind, count in sorted(requantised.items())]
    if "rope_freqs.weight" in tensors:
        notes.append("The file scales its rotary frequencies, which is not supported: long contexts lose quality.")
    return weights, notes


def _read(tensor: ReaderTensor, architecture: str, config: PretrainedConfig) -> Stored:
    """One tensor, its rows in transformers' order. Rows stay whole, so raw blocks can be permuted like numbers."""
    data: np.ndarray[Any, Any] = tensor.data
    if architecture == "llama" and ".attn_q." in tensor.name:
        data = _undo_rope_pairing(data, config.num_attention_heads)
    elif architecture == "llama" and ".attn_k." in tensor.name:
        data = _undo_rope_pairing(data, config.num_key_value_heads)
    if tensor.tensor_type == GGMLQuantizationType.BF16:
        return torch.from_numpy(np.array(data)).view(torch.bfloat16)
    if tensor.tensor_type in _DENSE:
        return torch.from_numpy(np.array(data))
    if tensor.tensor_type in _BLOCKS and data.ndim == 2:
        return _BLOCKS[tensor.tensor_type](torch.from_numpy(np.array(data)))
    numbers = torch.from_numpy(np.array(dequantize(data, tensor.tensor_type)))
    halves = numbers.to(torch.float16)
    return halves if torch.isfinite(halves).all() else numbers


def _is_layer_matrix(tensor: ReaderTensor) -> bool:
    return tensor.name.startswith("blk.") and len(tensor.shape) > 1


def _undo_rope_pairing(rows: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """llama.cpp stores a head's rotary pairs side by side, transformers as two halves (convert_hf_to_gguf, permute)."""
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _parameter_shapes(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    with init_empty_weights(include_buffers=True):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=True)}


def _model_class(config: PretrainedConfig) -> str:
    return str(AutoModelForCausalLM._model_mapping[type(config)].__name__)
