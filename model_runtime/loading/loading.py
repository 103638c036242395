"""Loads a model by name: the embedded one, a directory, a GGUF file or a hub id."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import release_memory
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from model_runtime.architecture.config_check import check_config, declared_context_tokens
from model_runtime.architecture.rope import fixed_rope_tokens
from model_runtime.forward.cpu_activations import INT8, INT16, SAMPLE, Activations, use_activations
from model_runtime.forward.few_rows.coded.device_layers import can_keep_bits
from model_runtime.forward.native_forward import runs_natively
from model_runtime.forward.probing.reach import check_reach
from model_runtime.interface.config import EMBEDDED, ModelConfig
from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.checkpoint import format_of
from model_runtime.loading.checks.checkpoint_check import PICKLED, check_checkpoint, check_files, how_to_convert
from model_runtime.loading.checks.config_file import described_model, read_model_config
from model_runtime.loading.checks.family_check import check_family
from model_runtime.loading.checks.format_check import check_experts, check_format
from model_runtime.loading.checks.gguf_parts import gguf_files, model_name, read_gguf_files
from model_runtime.loading.checks.other_files import file_notes, refuse_other_models
from model_runtime.loading.checks.tokenizer_check import check_producible
from model_runtime.loading.embedded import EMBEDDED_SAMPLING, SMOLLM2, embedded_gguf
from model_runtime.loading.fingerprint import gguf_key, model_fingerprint, tokenizer_fingerprint
from model_runtime.loading.fit.needs import Machine, Needs, checkpoint_needs, gguf_needs
from model_runtime.loading.fit.refusal import LEAST_TOKENS, free_bytes, refuse_too_large, swap_bytes
from model_runtime.loading.generation_settings import generation_settings
from model_runtime.loading.hub.downloads import hub_directory, hub_gguf, hub_repository, refuse_absent
from model_runtime.loading.hub.gguf_files import GgufFiles, gguf_models, split_choice
from model_runtime.loading.loaded import LoadedModel
from model_runtime.loading.loaded_weights import LoadedWeights, load_weights
from model_runtime.loading.model_cache import converted_gguf, has_half_checkpoint
from model_runtime.loading.tokenizer import load_tokenizer, stop_token_ids
from model_runtime.native import heap
from model_runtime.text.presets import ChosenTemplate, choose_template
from model_runtime.text.template_variables import template_notes
from model_runtime.weights.kernel_choice import own_kernels
from model_runtime.weights.quantization import Precision, choose_precision, dtype_name

Say = Callable[[str], None]
# accelerate and transformers patch torch's classes while they build a model: two threads at once would leave them
# patched.
_ONE_AT_A_TIME = threading.Lock()
_MOST_GROWTH = 24  # times its file: float32 for the fewest bits that a type has
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Found:
    """The directory of a model: a checkpoint, or a converted GGUF file."""

    name: str
    directory: Path
    is_gguf: bool


@dataclass(frozen=True, slots=True)
class _Order:
    """A model that was asked for, and where it is to run. `cache_bytes` is the size that was asked for all caches."""

    config: ModelConfig
    device: str
    cache_bytes: int | None
    say: Say


def load_model(config: ModelConfig, say: Say, cache_bytes: int | None = None) -> LoadedModel:
    """Loads the model that `config` names and reports slow operations through `say`. `cache_bytes` must stay free for
    caches; without a size, as much as a short conversation takes. Raises `ModelLoadError` with a message for the user,
    before weights are read or downloaded if they cannot fit."""
    with _ONE_AT_A_TIME:
        start_s = time.monotonic()
        loaded = _load(_Order(config, _device(config.device), cache_bytes, say))
    heap.give_back()  # pages between the parts of weights that came and went
    _log.info("loaded model=%s precision=%s seconds=%.1f", loaded.name, loaded.quantization, time.monotonic() - start_s)
    return loaded


def unload(loaded: LoadedModel) -> None:
    """Frees the weights even if `loaded` is still referenced. The model cannot be used afterwards."""
    for module in loaded.model.modules():
        for tensors in (module._parameters, module._buffers):
            tensors.update(dict.fromkeys(tensors))
        release = getattr(module, "release", None)
        if callable(release):
            release()
    release_memory()  # also collects garbage
    heap.give_back()


def context_limit_tokens(loaded: LoadedModel, asked_tokens: int | None) -> int:
    """The model's own limit, or `asked_tokens` if that is less. Raises `ModelLoadError` if it is more. With dynamic
    RoPE, whose frequencies change with every token from some length on, the limit is that length: kept rows would be
    wrong beyond it."""
    config = loaded.model.config.get_text_config()
    own = declared_context_tokens(config)
    if own is None:
        return asked_tokens or 4096
    fixed_tokens = fixed_rope_tokens(config)
    if fixed_tokens is not None and (asked_tokens or 0) > fixed_tokens:
        raise ModelLoadError(
            f"{loaded.name} changes its rotary frequencies with every token beyond {fixed_tokens:,} (dynamic RoPE), "
            f"and Keepwarm reads up to there; {asked_tokens:,} were asked for."
        )
    own = min(own, fixed_tokens or own)
    if asked_tokens is not None and asked_tokens > own:
        raise ModelLoadError(f"{loaded.name} holds at most {own:,} tokens; {asked_tokens:,} were asked for.")
    return asked_tokens or own


def _load(order: _Order) -> LoadedModel:
    config, device = order.config, order.device
    if device != "cpu" and config.cpu_activations != "auto":
        raise ModelLoadError(f"The model runs on {device}: leave --cpu-activations {config.cpu_activations} out.")
    try:
        found = _find(order)
        tokenizer, template = _texts(found, config)
        check_producible(tokenizer, _embeddings(found.directory), found.name)
        precision = _precision(found, config, device)
        weights = load_weights(found.directory, found.is_gguf, precision, device, config.cache_dir, order.say)
        sample_ids = tokenizer(SAMPLE)["input_ids"] if device == "cpu" else ()
        activations = use_activations(weights.model, config.cpu_activations, sample_ids, runs_natively)
    except ModelLoadError:
        raise
    except torch.cuda.OutOfMemoryError as error:
        raise ModelLoadError(
            f"{config.model} does not fit into the memory of {device}. Choose --quantization nf4 or a smaller model."
        ) from error
    except Exception as error:  # the one place that translates errors of torch, transformers, gguf and the disk
        raise ModelLoadError(f"{config.model} cannot be loaded: {_sentence(error)}") from error
    return _describe(found, weights, tokenizer, template, precision, activations)


def _check_before_weights(found: _Found, order: _Order) -> None:
    """Raises `ModelLoadError` for a config that no model can have, a family or a format that cannot be run here, and a
    model that does not fit into the memory. Only the config needs to be there."""
    precision = _precision(found, order.config, order.device)
    config = read_model_config(found.directory, found.name)
    check_family(found.name, config)
    check_config(config, found.name)
    described = described_model(config, found.name)
    check_reach(described, found.name)
    stored = format_of(found.directory)
    if stored is not None:
        check_experts(found.name, stored, described)
    has_kernels = order.device == "cpu" or can_keep_bits(torch.device(order.device))
    needs = checkpoint_needs(described, stored, Machine(order.device, has_kernels))
    try:
        _refuse_too_large(found.name, needs, precision, order)
    except ModelLoadError:
        if any(found.directory.glob("*.safetensors")):
            check_checkpoint(found.directory)  # a config of other weights is the truer reason
        raise


def _check_gguf_before_weights(path: Path, order: _Order) -> None:
    """Raises `ModelLoadError` for a GGUF file that does not fit into the memory."""
    precision = choose_precision(order.config.quantization, order.device, True)
    files = gguf_files(path)
    if precision.mode in ("nf4", "int8") and has_half_checkpoint(gguf_key(path), order.config.cache_dir):
        return  # making that takes the most memory
    file_bytes = sum(file.stat().st_size for file in files)
    if file_bytes * _MOST_GROWTH + (order.cache_bytes or 0) < free_bytes(order.device):
        return  # the header of a large vocabulary takes a second
    has_kernels = precision.mode == "shipped" and _has_own_kernels(order)
    needs = gguf_needs(read_gguf_files(files), Machine(order.device, has_kernels))
    _refuse_too_large(model_name(path), needs, precision, order)


def _has_own_kernels(order: _Order) -> bool:
    if order.device == "cpu":
        return own_kernels(order.config.cache_dir, order.say)[0] is not None
    return can_keep_bits(torch.device(order.device))


def _refuse_too_large(name: str, needs: Needs, precision: Precision, order: _Order) -> None:
    device, mode = order.device, precision.mode
    tokens = min(LEAST_TOKENS, order.config.context_limit_tokens or LEAST_TOKENS)
    free, swap = free_bytes(device), swap_bytes(device)
    refuse_too_large(name, needs, mode, device, order.cache_bytes, free, swap, tokens)


def _precision(found: _Found, config: ModelConfig, device: str) -> Precision:
    stored = None if found.is_gguf else format_of(found.directory)
    precision = choose_precision(config.quantization, device, found.is_gguf, stored)
    if stored is not None:
        check_format(found.name, stored, device, precision.mode == "none")
    return precision


def _texts(found: _Found, config: ModelConfig) -> tuple[PreTrainedTokenizerFast, ChosenTemplate]:
    tokenizer = load_tokenizer(found.directory)
    return tokenizer, choose_template(tokenizer, found.name, config.chat_preset)


def _embeddings(directory: Path) -> int:
    """How many tokens the config says that the model knows."""
    config = read_model_config(directory)
    known: object = getattr(config.get_text_config(), "vocab_size", None)
    return known if isinstance(known, int) and known > 0 else sys.maxsize


def _find(order: _Order) -> _Found:
    name, cache_dir, say = order.config.model, order.config.cache_dir, order.say
    if name == EMBEDDED:
        key = f"{SMOLLM2.name}-{SMOLLM2.gguf_sha256[:12]}"
        gguf = converted_gguf(lambda: embedded_gguf(cache_dir, say), key, cache_dir, say, embedded=True)
        return _Found(SMOLLM2.name, gguf, True)
    refuse_absent(name)
    path = Path(name).expanduser()
    if path.is_dir():
        check_files(path)
        refuse_other_models(path)
        format_of(path)  # raises a message if the directory does not contain a model
        found = _Found(path.resolve().name, path, False)
        _check_before_weights(found, order)
        return found
    if path.exists():
        if path.is_file() and path.suffix.lower() in PICKLED:
            raise ModelLoadError(f"{path.name} cannot be loaded. {how_to_convert(path.name)}")
        if not path.is_file() or path.suffix.lower() != ".gguf":
            raise ModelLoadError(f"{name} is neither a directory nor a .gguf file.")
        return _converted(path, order)
    model_id, choice = split_choice(name)
    return _find_on_hub(model_id, choice, order)


def _converted(path: Path, order: _Order) -> _Found:
    _check_gguf_before_weights(path, order)
    cache_dir, say = order.config.cache_dir, order.say
    return _Found(model_name(path), converted_gguf(lambda: path, gguf_key(path), cache_dir, say), True)


def _find_on_hub(model_id: str, choice: str | None, order: _Order) -> _Found:
    repository = hub_repository(model_id, order.say)
    if choice is not None or (gguf_models(repository.files) and not repository.has_safetensors):

        def check_size(model: GgufFiles) -> None:
            # Before the header is here: its tensors are the file, and nothing takes less than them.
            precision = choose_precision(order.config.quantization, order.device, True)
            _refuse_too_large(
                f"{model_id}:{model.name}", Needs({precision.mode: model.size_bytes}, 0), precision, order
            )

        return _converted(hub_gguf(repository, choice, check_size), order)

    def check(described: Path) -> None:
        found = _Found(model_id, described, False)
        _check_before_weights(found, order)
        tokenizer, _ = _texts(
            found, order.config
        )  # without one, or a format for its texts, a download is worth nothing
        check_producible(tokenizer, _embeddings(described), model_id)

    return _Found(model_id, hub_directory(repository, check), False)


def _describe(
    found: _Found,
    weights: LoadedWeights,
    tokenizer: PreTrainedTokenizerFast,
    template: ChosenTemplate,
    precision: Precision,
    activations: Activations,
) -> LoadedModel:
    model, dtype = weights.model, precision.compute_dtype
    settings = generation_settings(found.directory, model)
    asked = (*settings.notes, *file_notes(found.directory), *template_notes(tokenizer))
    # Left out for float32, so that memory saved before there was a choice stays valid.
    more = {"activations": activations.kind} if activations.kind in (INT8, INT16) else {}
    if activations.has_level_units:
        more["levels"] = "bytes"  # once they were multiplied as two bytes each
    if activations.note:
        asked = (activations.note, *asked)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        name=found.name,
        quantization=weights.quantization + (f", {activations.kind} activations" if more else ""),
        stop_token_ids=stop_token_ids(_stated_ends(model), tokenizer),
        default_sampling=EMBEDDED_SAMPLING if found.name == SMOLLM2.name else settings.sampling,
        kv_dtype=dtype,
        weights_bytes=_weights_bytes(model),
        fingerprint=model_fingerprint(
            weights.directory,
            model.config,
            quantization=weights.quantization,
            dtype=dtype_name(dtype),
            kernel=weights.kernel,
            **more,
        ),
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        notes=(*weights.notes, *template.notes, *asked),
        stop_strings=template.stop_strings,
    )


def _stated_ends(model: PreTrainedModel) -> list[object]:
    configs = (model.generation_config, model.config.get_text_config())
    return [getattr(config, "eos_token_id", None) for config in configs]


def _weights_bytes(model: PreTrainedModel) -> int:
    """Bytes of all parameters and buffers, shared ones counted once, and of packed weights that torch misses."""
    storages: dict[int, int] = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in (*model.parameters(), *model.buffers())
    }
    hidden_bytes: int = sum(getattr(module, "hidden_bytes", 0) for module in model.modules())
    return sum(storages.values()) + hidden_bytes


def _device(asked: str | None) -> str:
    device = asked or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelLoadError("No CUDA device can be used here. Leave --device out, or choose cpu.")
    return "cuda:0" if device == "cuda" else device


def _sentence(error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return "it needs Python code of its own, and Keepwarm never runs code from a model's directory."
    if "ignore_mismatched_sizes" in str(error):
        return "its weights have other shapes than its config describes."
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line[:300] if line.endswith(".") else f"{line[:300]}."
