"""Loads a transformers checkpoint directory at its own bits, or quantised with bitsandbytes. accelerate places the
weights."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.models.falcon import modeling_falcon
from transformers.utils import logging as transformers_logging

from model_runtime.architecture.model_class import auto_class
from model_runtime.architecture.shape_check import check_bitsandbytes
from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.checks.checkpoint_check import check_checkpoint, tensor_dtypes, weight_files
from model_runtime.loading.checks.config_file import read_model_config
from model_runtime.loading.checks.json_file import read_config
from model_runtime.loading.checks.unused_weights import unused_weights
from model_runtime.loading.progress import Say, shown
from model_runtime.weights.checkpoint_formats.bitsandbytes_layers import set_four_bit_products
from model_runtime.weights.checkpoint_formats.fp8 import fp8_settings
from model_runtime.weights.checkpoint_formats.stored_format import StoredFormat, stored_format
from model_runtime.weights.kept.nf4_file import Nf4File
from model_runtime.weights.own_layers.quantizer import METHOD as STORED_METHOD
from model_runtime.weights.quantization import Precision, bitsandbytes_config
from model_runtime.weights.streamed import StreamedCheckpoint

Keep = Callable[[StreamedCheckpoint], Nf4File | None]


def load_checkpoint(
    directory: Path,
    precision: Precision,
    device: str,
    stored: StoredFormat | None = None,
    kernels: ctypes.CDLL | None = None,
    say: Say = lambda _: None,
    keep: Keep = lambda _: None,
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """The model in eval mode, its weights at `precision`, and sentences about weights that it does not use; `stored` is
    the checkpoint's own format. `kernels` run NF4 on a CPU; without them, bitsandbytes does. `keep` gives what the
    model's NF4 matrices were quantised to at an earlier start. Layers of our own formats
    (`StoredLinear`) cannot compute yet. Raises `ModelLoadError`
    when weights are missing, or when those should be used that are not: transformers would only warn, and initialise or
    drop them."""
    check_checkpoint(directory)
    # On its first import it logs, as an error, the advice to install a package with kernels from the hub.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    if device == "cpu" and stored is None and (precision.mode == "none" or (precision.mode == "nf4" and kernels)):
        streamed = _streamed(directory, precision, kernels if precision.mode == "nf4" else None, say, keep)
        if streamed is not None:
            return streamed, ()
    with progress_on_terminals_only(), plain_falcon_layers(precision.mode != "none"):
        config = read_model_config(directory)
        model, report = auto_class(config).from_pretrained(
            directory,
            dtype=precision.compute_dtype,
            device_map={"": device},
            local_files_only=True,
            output_loading_info=True,
            trust_remote_code=False,
            use_safetensors=True,
            **{"config": config, **_bits_to_load(directory, precision, device, stored)},
        )
    refuse_missing(report, f"The checkpoint {directory.name}")
    notes = unused_weights(directory.name, model, report.get("unexpected_keys", ()))
    check_bitsandbytes(model)
    set_four_bit_products(model, precision.compute_dtype)
    if stored is not None and precision.mode == "none" and stored.method == "bitsandbytes" and not stored.is_own:
        model = model.dequantize(dtype=precision.compute_dtype)
    model.requires_grad_(False)
    loaded: PreTrainedModel = model.eval()
    return loaded, notes


def _streamed(
    directory: Path, precision: Precision, kernels: ctypes.CDLL | None, say: Say, keep: Keep
) -> PreTrainedModel | None:
    """The model, loaded one tensor at a time; None if transformers has to rename, join or convert its tensors."""
    config = read_model_config(directory)
    with plain_falcon_layers(precision.mode != "none"), init_empty_weights(include_buffers=False):
        model: PreTrainedModel = auto_class(config).from_config(
            config, dtype=precision.compute_dtype, trust_remote_code=False
        )
    checkpoint = StreamedCheckpoint(model, weight_files(directory), kernels)
    if not checkpoint.can_be_streamed:
        return None
    model.generation_config = _generation_config(directory)
    if kernels is not None:
        model.config.quantization_config = bitsandbytes_config(precision)
        checkpoint.use_kept(keep(checkpoint))
    with shown(f"Loading {directory.name}", checkpoint.nbytes, say) as progress:
        checkpoint.fill(progress)
    model.requires_grad_(False)
    return model.eval()


def _generation_config(directory: Path) -> GenerationConfig:
    """What `from_pretrained` makes of the directory."""
    try:
        return GenerationConfig.from_pretrained(directory, local_files_only=True)
    except OSError:
        return GenerationConfig.from_pretrained(
            directory, config_file_name="config.json", _from_model_config=True, local_files_only=True
        )


def _bits_to_load(directory: Path, precision: Precision, device: str, stored: StoredFormat | None) -> dict[str, Any]:
    """Arguments of `from_pretrained`. The checkpoint's own config decides; it is passed on unchanged but for what our
    own layers run, and for weights that are de-quantised. An explicit `quantization_config` would replace it."""
    if stored is None:
        settings = bitsandbytes_config(precision)
        return {} if settings is None else {"quantization_config": settings}
    changes: dict[str, Any] = {}
    if stored.is_fp8:
        changes = fp8_settings(stored, tensor_dtypes(directory))
    if precision.mode == "none" and stored.method != "bitsandbytes":
        changes |= {"dequantize": True}
    if stored.is_own_on(device, precision.mode == "none"):
        # transformers would choose bitsandbytes' quantizer by these, whatever the method.
        ignored = dict.fromkeys(("load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit"), False)
        changes = {"quant_method": STORED_METHOD, "stored_as": stored.method, **ignored}
    if not changes:
        return {}
    config = read_model_config(directory)
    for level in (config, config.get_text_config()):
        if getattr(level, "quantization_config", None) is not None:
            level.quantization_config = {**stored.settings, **changes}
    return {"config": config}


def refuse_missing(report: Mapping[str, Any], what: str) -> None:
    """Raises `ModelLoadError` for weights that transformers did not find, or found in the wrong shape: it initialises
    them randomly."""
    missing = sorted(str(key) for key in report.get("missing_keys", ()))
    if missing:
        raise ModelLoadError(f"{what} lacks weights: {', '.join(missing[:3])}.")
    if report.get("mismatched_keys"):
        raise ModelLoadError(f"{what} has weights with other shapes than its config describes.")


def format_of(directory: Path) -> StoredFormat | None:
    """The bits in which the checkpoint's config says that its weights are stored; None for plain numbers. Raises
    `ModelLoadError` for a directory without a config."""
    try:
        return stored_format(read_config(directory / "config.json"))
    except FileNotFoundError:
        raise ModelLoadError(_no_config(directory)) from None


def _no_config(directory: Path) -> str:
    files = sorted(path.name for path in directory.glob("*.gguf"))
    hint = f" It contains {files[0]}: name that file." if files else ""
    return f"{directory} is not a model: it has no config.json.{hint}"


@contextlib.contextmanager
def progress_on_terminals_only() -> Iterator[None]:
    """Keeps transformers' progress bars out of logs and pipes."""
    shown = transformers_logging.is_progress_bar_enabled()
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def plain_falcon_layers(is_quantised: bool) -> Iterator[None]:
    """If `is_quantised`, a Falcon that is built meanwhile has plain linear layers: bitsandbytes' integration quantises
    these only, and would leave all of Falcon's own subclass at 16 or 32 bits without a word. The subclass rounds a
    product before it adds the bias, which a quantised layer does not do anyway."""
    own_class = modeling_falcon.FalconLinear
    if is_quantised:
        modeling_falcon.FalconLinear = nn.Linear
    try:
        yield
    finally:
        modeling_falcon.FalconLinear = own_class
