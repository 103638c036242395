"""transformers' half of a comparison: loads the same directory or file, and shares none of the code that unpacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.checkpoint import progress_on_terminals_only, refuse_missing
from model_runtime.loading.checks.checkpoint_check import check_files
from model_runtime.loading.checks.gguf_header import GgufHeader, read_gguf_header
from model_runtime.loading.checks.gguf_parts import gguf_files
from model_runtime.loading.checks.json_file import read_config
from model_runtime.reference.plain_model import model_class, plain_model
from model_runtime.reference.plain_weights import has_plain_formula
from model_runtime.reference.turns import ANSWER, TurnIds
from model_runtime.weights.checkpoint_formats.stored_format import StoredFormat, stored_format

# What names a model, its files or its words, and changes no number.
_NAMES_ONLY = frozenset(
    {"architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "name_or_path", "use_cache"}
    | {"model_type", "quantization_config", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"}
    | {"_attn_implementation", "max_position_embeddings", "initializer_range", "_model_name"}
)
_DENSE = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)


@dataclass(frozen=True, slots=True)
class Reference:
    """`notes` say what the reference was given beyond its own read. `unused` are sentences about metadata of a file
    that neither side uses: there the reference proves nothing. `has_rounded_weights`: transformers de-quantised them,
    and may have rounded them to float16 on the way."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    sentence: str
    has_rounded_weights: bool
    notes: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def load_reference(
    path: Path,
    dtype: torch.dtype,
    device: str,
    config: PretrainedConfig | None,
    quantization: Any,
    nf4_experts: Sequence[str] = (),
) -> Reference:
    """Loads a checkpoint directory or a .gguf file. `config` is Keepwarm's, for the settings that transformers' reader
    of GGUF drops. `quantization` is what Keepwarm put on top of a checkpoint without its own, and `nf4_experts` are the
    layers of experts that it quantised with it. Raises what transformers raises, or `ModelLoadError`."""
    with progress_on_terminals_only():
        if path.is_dir():
            return _checkpoint(path, dtype, device, quantization, nf4_experts)
        return _gguf(path, dtype, device, config)


def own_config(path: Path) -> PretrainedConfig | None:
    """The config as transformers reads it; None where it cannot."""
    directory, file = (path, None) if path.is_dir() else (path.parent, path.name)
    try:
        if path.is_dir():
            check_files(path)
        return AutoConfig.from_pretrained(directory, gguf_file=file, local_files_only=True, trust_remote_code=False)
    except Exception:  # what is wrong is said by whichever side meets it
        return None


def own_ids(tokenizer: PreTrainedTokenizerFast, chat_template: Any, turn: TurnIds) -> tuple[int, ...] | None:
    """The tokenizer's own ids for the turn; None when its rendering has no place to compare from. Raises what the
    template raises."""
    rendered = _rendered(tokenizer, chat_template, turn, typed=False)
    if turn.messages[-1][1].strip() not in rendered:  # a template that reads parts leaves plain text out
        rendered = _rendered(tokenizer, chat_template, turn, typed=True)
    encoded = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
    ids = tuple(encoded["input_ids"])
    if not turn.behind_answer:
        return ids
    if rendered.count(ANSWER) != 1:
        return None
    end = rendered.index(ANSWER) + len(ANSWER)
    return tuple(token for token, (start, _) in zip(ids, encoded["offset_mapping"], strict=True) if start >= end)


def _rendered(tokenizer: PreTrainedTokenizerFast, chat_template: Any, turn: TurnIds, typed: bool) -> str:
    messages = [
        {"role": role, "content": [{"type": "text", "text": text}] if typed else text} for role, text in turn.messages
    ]
    return str(
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, chat_template=chat_template)
    )


def _checkpoint(
    directory: Path, dtype: torch.dtype, device: str, quantization: Any, nf4_experts: Sequence[str]
) -> Reference:
    check_files(directory)
    stored = stored_format(read_config(directory / "config.json"))
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    if stored is not None and _is_plain(stored, device):
        model = plain_model(directory, stored, dtype, device)
        sentence = f"{_described(model)}, de-quantised from {stored.name} by the format's formula"
        return Reference(model, tokenizer, sentence, False)
    options: dict[str, Any] = {"dtype": dtype, "device_map": {"": device}, "output_loading_info": True}
    if quantization is not None and stored is None:
        options["quantization_config"] = quantization
    with progress_on_terminals_only():
        model, report = model_class(directory).from_pretrained(
            directory, local_files_only=True, trust_remote_code=False, use_safetensors=True, **options
        )
    refuse_missing(report, f"The checkpoint {directory.name}")
    _multiply_in_own_dtype(model)
    for name in nf4_experts:
        _round_to_nf4(model.get_submodule(name))
    return Reference(model.eval(), tokenizer, _described(model), False)


def _is_plain(stored: StoredFormat, device: str) -> bool:
    """Whether the weights are de-quantised here. On a GPU, LLM.int8 rounds activations too, and Keepwarm runs it so."""
    if stored.method == "bitsandbytes" and device != "cpu":
        return False
    return has_plain_formula(stored.method, stored.settings)


def _multiply_in_own_dtype(model: PreTrainedModel) -> None:
    """bitsandbytes' packed CPU kernel for NF4 and FP4 rounds activations to bfloat16 (0.06 standard deviations in a
    tiny Llama whose de-quantised float32 model Keepwarm gives to 4e-6), and cannot divide some widths. Without it,
    bitsandbytes de-quantises a layer's weights and multiplies in the activations' own precision."""
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False


def _round_to_nf4(experts: torch.nn.Module) -> None:
    """Gives each expert the numbers that bitsandbytes makes of it: by itself it passes over parameters of three
    dimensions."""
    from bitsandbytes import functional  # only here: importing it costs a second

    for stack in experts.parameters():
        for matrix in stack.data if stack.ndim == 3 else ():
            codes, state = functional.quantize_4bit(matrix.contiguous(), quant_type="nf4", compress_statistics=True)
            matrix.copy_(functional.dequantize_4bit(codes, state))


def _gguf(path: Path, dtype: torch.dtype, device: str, config: PretrainedConfig | None) -> Reference:
    parent, name = str(path.parent), path.name
    if len(gguf_files(path)) > 1:
        raise ModelLoadError(
            f"{name} cannot be compared: transformers does not read a model in several GGUF files. Join them with "
            "llama.cpp's `llama-gguf-split --merge`."
        )
    own = AutoConfig.from_pretrained(parent, gguf_file=name, trust_remote_code=False)
    notes: list[str] = []
    for setting, theirs, ours in _differences(own, config):
        notes.append(
            f"transformers' own read of the file has {setting} = {theirs}; Keepwarm's has {ours}. The reference was "
            "given Keepwarm's, so this setting itself is not held against anything."
        )
        setattr(own, setting, ours)
    with progress_on_terminals_only():
        model, report = AutoModelForCausalLM.from_pretrained(
            parent,
            gguf_file=name,
            config=own,
            quantization_config=GgufConfig(dequantize=True),
            dtype=dtype,
            output_loading_info=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    refuse_missing(report, name)
    tokenizer = AutoTokenizer.from_pretrained(parent, gguf_file=name, trust_remote_code=False)
    header = read_gguf_header(path)
    unused = tuple(_unused(header, model))
    rounded = any(tensor.kind not in _DENSE for tensor in header.tensors.values())
    sentence = f"{_described(model)}, de-quantised from the file by transformers"
    return Reference(model.to(device).eval(), tokenizer, sentence, rounded, tuple(notes), unused)


def _differences(own: PretrainedConfig, config: PretrainedConfig | None) -> Iterator[tuple[str, Any, Any]]:
    """Settings that Keepwarm's config has and transformers' own read of the file has not, or has otherwise."""
    if config is None or type(config) is not type(own):
        return
    theirs = own.to_dict()
    for setting, ours in config.to_dict().items():
        if setting not in _NAMES_ONLY and theirs.get(setting) != ours:
            yield setting, theirs.get(setting), ours


def _unused(header: GgufHeader, model: PreTrainedModel) -> Iterator[str]:
    """Metadata and tensors that change numbers and that the model has no trace of."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [kind for kind in rope.values() if isinstance(kind, Mapping)] or [rope]  # of Gemma 3's kinds of layers
    is_plain = all(kind.get("rope_type", "default") == "default" for kind in kinds)
    own = {key.removeprefix(f"{header.architecture}."): value for key, value in header.metadata.items()}
    if is_plain and own.get("rope.scaling.type", "none") != "none":
        yield f"The file's rope.scaling.type is {own['rope.scaling.type']}, which neither read uses."
    if is_plain and "rope_freqs.weight" in header.tensors:
        yield "The file scales its rotary frequencies (rope_freqs.weight), which neither read uses."
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if own.get(key) and not getattr(config, key, None):
            yield f"The file's {key} is {own[key]}, which neither read uses."
    parameters = {parameter.rsplit(".layers.0.", 1)[-1] for parameter, _ in model.named_parameters()}
    for letter in ("q", "k", "v"):
        has_bias = any(f"{letter}_proj.bias" in parameter or "c_attn.bias" in parameter for parameter in parameters)
        if f"blk.0.attn_{letter}.bias" in header.tensors and not has_bias:
            yield f"The file has attention biases (blk.0.attn_{letter}.bias), which neither read uses."


def _described(model: PreTrainedModel) -> str:
    method = getattr(getattr(model.config, "quantization_config", None), "quant_method", None)
    kind = f", {getattr(method, 'value', method)}" if method else ""
    return f"{type(model).__name__}, {str(model.dtype).removeprefix('torch.')}{kind}, on {model.device}"
