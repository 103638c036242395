"""Converts a GGUF file once to a directory with transformers' tokenizer and config and the file's own blocks.

transformers takes 22 s to read a GGUF of 135M parameters, at every start, converts it to float32, and drops what it
does not know. Here the header alone decides whether a file can be used (`families`, `parameters`, `vocabulary`), before
anything is converted. Blocks are kept unless the conversion computes with their numbers. A parameter is read when it is
written, so that memory never holds the whole model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, LlamaFileType
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PretrainedConfig

from model_runtime.architecture.config_check import check_config
from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.checks.family_check import check_family
from model_runtime.loading.checks.gguf_check import check_gguf
from model_runtime.loading.checks.gguf_header import GgufHeader, TensorInfo, tensor_bytes
from model_runtime.loading.checks.gguf_parts import gguf_files, read_gguf_files
from model_runtime.loading.gguf.families import Settings, settings_of
from model_runtime.loading.gguf.general_keys import check_architecture, check_general_keys, recommended_sampling
from model_runtime.loading.gguf.metadata import Metadata
from model_runtime.loading.gguf.parameters import Source, plan_parameters
from model_runtime.loading.gguf.raw_tensors import DENSE, as_numbers, raw_shape, read_raw
from model_runtime.loading.gguf.vocabulary import check_vocabulary_keys, save_tokenizer, token_ids
from model_runtime.loading.progress import Say, shown
from model_runtime.weights.ggml_blocks import GgmlBlocks
from model_runtime.weights.q4_blocks import Q4Blocks, read_q4_0, read_q4_1, read_q8_0
from model_runtime.weights.stored_weights import Stored, Unread, save_weights

FORMAT_VERSION = 4
SOURCE_FILE = "source.json"
_PACKED_MODELS = ("llama", "mistral", "qwen2", "qwen3")
_DTYPES = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
_BLOCKS: dict[GGMLQuantizationType, Callable[[torch.Tensor], Stored]] = {
    GGMLQuantizationType.Q4_0: read_q4_0,
    GGMLQuantizationType.Q4_1: read_q4_1,
    GGMLQuantizationType.Q8_0: read_q8_0,
}


def convert_gguf(gguf_path: Path, directory: Path, say: Say = lambda _: None, *, splits_as_stated: bool = True) -> None:
    """Fills `directory` with tokenizer, config, `source.json` and weights. `gguf_path` is the file, or one of the parts
    of a model in several.

    How far it has come is told through `say`. `splits_as_stated`: whether the tokenizer splits text as the file says,
    or as transformers makes of it. Raises `ModelLoadError` when the file cannot be read as a GGUF or states something
    that is not supported.
    """
    files = gguf_files(gguf_path)
    gguf_path, header = files[0], read_gguf_files(files)
    name = gguf_path.name
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
    _save(gguf_path, header, plan, directory, say)
    types = sorted({t.kind.name for t in header.tensors.values() if _is_layer_matrix(t)})
    described = {"has_blocks": config.model_type in _PACKED_MODELS, "matrix_types": types}
    described["notes"] = [*notes, *sampling_notes]
    mix = _mix(header, types)
    if mix:
        described["mix"] = mix
    (directory / SOURCE_FILE).write_text(json.dumps(described), encoding="utf-8")


def _mix(header: GgufHeader, types: list[str]) -> str | None:
    """The name of the file's mixture of types ("Q4_K_M"), if it says one that fits them and says more than they do."""
    number = header.metadata.get("general.file_type")
    known = {int(kind): kind.name.split("_", 1)[1] for kind in LlamaFileType if "_" in kind.name}
    name = known.get(number) if isinstance(number, int) else None
    is_true = name is not None and re.sub(r"_(S|M|L|MOE)$", "", name) in types
    return name if is_true and types != [name] else None


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


def _save(path: Path, header: GgufHeader, plan: dict[str, Source], directory: Path, say: Say) -> None:
    unread = {
        parameter: Unread(_announced(header, source), partial(_stored, path, header, source))
        for parameter, source in plan.items()
    }
    whole = sum(tensor_bytes(tensor) for tensor in header.tensors.values())
    with shown(f"Converting {path.name}", whole, say) as progress:
        save_weights(unread, directory, lambda done, of: progress(done * whole // max(1, of)))


def _announced(header: GgufHeader, source: Source) -> Stored:
    """What `_stored` returns, without its content."""
    infos = [header.tensors[tensor] for tensor in source.tensors]
    if not infos or _is_computed(source, infos):
        return torch.empty(source.shape, device="meta")
    shape = raw_shape(infos[0])
    if len(infos) > 1:
        shape = (shape[0], sum(info.shape[1] for info in infos), *shape[2:])
    kind = infos[0].kind
    dtype = _DTYPES.get(kind, torch.uint8)
    return _as_stored(torch.empty(shape, dtype=dtype, device="meta"), kind)


def _is_computed(source: Source, infos: list[TensorInfo]) -> bool:
    """Whether a parameter has numbers where the file has blocks. Blocks that are only to be transposed stay as they
    are: outputs come first in all blocks (`build`)."""
    kinds = {info.kind for info in infos}
    changes = source.change is not None and not (source.change is np.transpose and DENSE.keys().isdisjoint(kinds))
    return changes or len(kinds) > 1 or GGMLQuantizationType.F64 in kinds


def _stored(path: Path, header: GgufHeader, source: Source) -> Stored:
    """One parameter, in transformers' order and shape."""
    infos = [header.tensors[tensor] for tensor in source.tensors]
    if not infos:
        return torch.zeros(source.shape)
    parts = [read_raw(path, header, info) for info in infos]
    kind = infos[0].kind
    if _is_computed(source, infos):
        parts = [as_numbers(part, info.kind) for part, info in zip(parts, infos, strict=True)]
        kind = GGMLQuantizationType.F32
    data = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    data = source.order(data) if source.order else data
    data = source.change(data) if source.change and _is_computed(source, infos) else data
    tensor = torch.from_numpy(np.array(data, order="C"))
    stored = _as_stored(tensor.view(torch.bfloat16) if kind == GGMLQuantizationType.BF16 else tensor, kind)
    if isinstance(stored, Q4Blocks) and not torch.isfinite(stored.minimum).all():
        raise ModelLoadError(f"{path.name} cannot be used: a scale of its tensor {infos[0].name} is too large.")
    return stored


def _as_stored(tensor: torch.Tensor, kind: GGMLQuantizationType) -> Stored:
    if kind in DENSE:
        return tensor
    return _BLOCKS[kind](tensor) if kind in _BLOCKS and tensor.ndim == 2 else GgmlBlocks(tensor, kind.name)


def _is_layer_matrix(tensor: TensorInfo) -> bool:
    return tensor.name.startswith("blk.") and len(tensor.shape) > 1
