"""Converts a GGUF file once to a directory with transformers' tokenizer and config and the file's own blocks.

transformers takes 22 s to read a GGUF of 135M parameters, at every start, converts it to float32, and drops what it
does not know. Here the header alone decides whether a file can be used (`families`, `parameters`, `vocabulary`), before
anything is converted. Blocks are kept unless the conversion computes with their numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PretrainedConfig

from model_runtime.architecture.config_check import check_config
from model_runtime.loading.checks.family_check import check_family
from model_runtime.loading.checks.gguf_check import check_gguf
from model_runtime.loading.checks.gguf_header import GgufHeader, TensorInfo, read_gguf_header
from model_runtime.loading.gguf.families import Settings, settings_of
from model_runtime.loading.gguf.general_keys import check_architecture, check_general_keys, recommended_sampling
from model_runtime.loading.gguf.metadata import Metadata
from model_runtime.loading.gguf.parameters import Source, plan_parameters
from model_runtime.loading.gguf.raw_tensors import DENSE, as_numbers, read_raw
from model_runtime.loading.gguf.vocabulary import check_vocabulary_keys, save_tokenizer, token_ids
from model_runtime.weights.ggml_blocks import GgmlBlocks
from model_runtime.weights.q4_blocks import read_q4_0, read_q4_1, read_q8_0
from model_runtime.weights.stored_weights import Stored, save_weights

FORMAT_VERSION = 3
SOURCE_FILE = "source.json"
_PACKED_MODELS = ("llama", "mistral", "qwen2", "qwen3")
_BLOCKS: dict[GGMLQuantizationType, Callable[[torch.Tensor], Stored]] = {
    GGMLQuantizationType.Q4_0: read_q4_0,
    GGMLQuantizationType.Q4_1: read_q4_1,
    GGMLQuantizationType.Q8_0: read_q8_0,
}


def convert_gguf(gguf_path: Path, directory: Path, *, splits_as_stated: bool = True) -> None:
    """Fills `directory` with tokenizer, config, `source.json` and weights.

    `splits_as_stated`: whether the tokenizer splits text as the file says, or as transformers makes of it. Raises
    `ModelLoadError` when the file cannot be read as a GGUF or states something that is not supported.
    """
    name, header = gguf_path.name, read_gguf_header(gguf_path)
    check_gguf(name, header)
    check_architecture(name, header)
    check_general_keys(name, header)
    check_vocabulary_keys(name, header)
    metadata = Metadata(gguf_path, header)
    config = _config(metadata)
    check_family(name, config)
    check_config(config, name)
    plan = plan_parameters(metadata, config)

    notes = [*metadata.notes, *save_tokenizer(gguf_path, header, directory, splits_as_stated=splits_as_stated)]
    config.save_pretrained(directory)
    sampling, sampling_notes = recommended_sampling(header)
    if sampling:
        ids = {key: getattr(config, key, None) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        GenerationConfig(do_sample=True, **ids, **sampling).save_pretrained(directory)
    save_weights({parameter: _stored(gguf_path, header, source) for parameter, source in plan.items()}, directory)
    packs = config.model_type in _PACKED_MODELS
    described = {
        "has_blocks": packs,
        "matrix_types": sorted({t.kind.name for t in header.tensors.values() if _is_layer_matrix(t)}),
        "notes": [*notes, *sampling_notes, *_de_quantised(header, plan, packs)],
    }
    (directory / SOURCE_FILE).write_text(json.dumps(described), encoding="utf-8")


def _config(metadata: Metadata) -> PretrainedConfig:
    header = metadata.header
    rows = header.tensors["token_embd.weight"].shape[0]
    metadata.expect("vocab_size", rows)
    settings: Settings = {"vocab_size": rows, "tie_word_embeddings": "output.weight" not in header.tensors}
    name = header.metadata.get("general.name")
    if isinstance(name, str):
        settings["_model_name_or_path"] = name
    config = AutoConfig.for_model(**settings, **token_ids(header), **settings_of(metadata))
    config.architectures = [str(AutoModelForCausalLM._model_mapping[type(config)].__name__)]
    return config


def _stored(path: Path, header: GgufHeader, source: Source) -> Stored:
    """One parameter, in transformers' order and shape."""
    infos = [header.tensors[tensor] for tensor in source.tensors]
    if not infos:
        return torch.zeros(source.shape)
    kinds = {info.kind for info in infos}
    parts = [read_raw(path, header, info) for info in infos]
    kind = infos[0].kind
    if source.change is not None or len(kinds) > 1 or kind == GGMLQuantizationType.F64:
        parts = [as_numbers(part, info.kind) for part, info in zip(parts, infos, strict=True)]
        kind = GGMLQuantizationType.F32
    data = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    data = source.order(data) if source.order else data
    data = source.change(data) if source.change else data
    tensor = torch.from_numpy(np.array(data, order="C"))
    if kind == GGMLQuantizationType.BF16:
        return tensor.view(torch.bfloat16)
    if kind in DENSE:
        return tensor
    return _BLOCKS[kind](tensor) if kind in _BLOCKS and tensor.ndim == 2 else GgmlBlocks(tensor, kind.name)


def _de_quantised(header: GgufHeader, plan: dict[str, Source], packs: bool) -> list[str]:
    if not packs:
        return [f"GGUF files of the architecture '{header.architecture}' run de-quantised."]
    counts: dict[str, int] = {}
    for source in plan.values():
        for kind in {header.tensors[tensor].kind for tensor in source.tensors} - DENSE.keys() - _BLOCKS.keys():
            counts[kind.name] = counts.get(kind.name, 0) + 1
    return [f"{count} tensors of type {kind} run de-quantised." for kind, count in sorted(counts.items())]


def _is_layer_matrix(tensor: TensorInfo) -> bool:
    return tensor.name.startswith("blk.") and len(tensor.shape) > 1
