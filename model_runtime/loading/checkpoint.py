"""Loads a transformers checkpoint directory, as it is or quantised with bitsandbytes. accelerate places the weights."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from model_runtime.architecture.shape_check import check_bitsandbytes
from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.checks.checkpoint_check import check_checkpoint, read_config
from model_runtime.loading.checks.tokenizer_check import check_tokenizer_files, damaged_tokenizer
from model_runtime.weights.quantization import Precision, bitsandbytes_config


def load_checkpoint(directory: Path, precision: Precision, device: str) -> PreTrainedModel:
    """The model in eval mode. Raises `ModelLoadError` when weights are missing: transformers would only warn and
    initialise them randomly."""
    check_checkpoint(directory)
    settings = bitsandbytes_config(precision)
    # On its first import it logs, as an error, the advice to install a package with kernels from the hub.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    with progress_on_terminals_only():
        model, report = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=precision.compute_dtype,
            device_map={"": device},
            quantization_config=settings,
            local_files_only=True,
            output_loading_info=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    refuse_missing(report, f"The checkpoint {directory.name}")
    check_bitsandbytes(model)
    if precision.mode == "nf4":
        _leave_odd_shapes_unpacked(model)
    model.requires_grad_(False)
    loaded: PreTrainedModel = model.eval()
    return loaded


def refuse_missing(report: Mapping[str, Any], what: str) -> None:
    """Raises `ModelLoadError` for weights that transformers did not find, or found in the wrong shape: it initialises
    them randomly."""
    missing = sorted(str(key) for key in report.get("missing_keys", ()))
    if missing:
        raise ModelLoadError(f"{what} lacks weights: {', '.join(missing[:3])}.")
    if report.get("mismatched_keys"):
        raise ModelLoadError(f"{what} has weights with other shapes than its config describes.")


def _leave_odd_shapes_unpacked(model: PreTrainedModel) -> None:
    """On CPUs with AVX512-BF16, bitsandbytes packs 4-bit layers at their first forward and asserts that outputs are
    divisible by 32 and inputs by the block size. Layers that are not are de-quantised instead."""
    from bitsandbytes.nn import Linear4bit  # only here: importing it costs a second

    for module in model.modules():
        if isinstance(module, Linear4bit):
            block = getattr(module.weight, "blocksize", 64)
            if module.out_features % 32 or module.in_features % block:
                module.support_avx512bf16_for_cpu = False


def load_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """The tokenizer. Raises `ModelLoadError` unless it is one of the tokenizers library, and undamaged."""
    check_tokenizer_files(directory)
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (ImportError, OSError):  # a missing library or file
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise
        raise damaged_tokenizer(directory) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # raised by the tokenizers library when its Rust code panics
            raise
        raise damaged_tokenizer(directory) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelLoadError(
            f"{directory.name} has no fast tokenizer (a tokenizer.json), which incremental text needs."
        )
    return tokenizer


def is_quantised(directory: Path) -> bool:
    """Whether the checkpoint's config says that its weights are quantised already."""
    try:
        return "quantization_config" in read_config(directory / "config.json")
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
