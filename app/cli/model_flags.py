"""The flags that `serve` and `doctor` share: which data directory, and which model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from model_runtime.interface.config import CHAT_PRESETS, EMBEDDED, CpuActivations, ModelConfig


def add_model_flags(command: argparse.ArgumentParser, data_dir: Path) -> None:
    """Adds the flags of `model_config`, and `--data-dir`."""
    command.add_argument(
        "--model",
        default=EMBEDDED,
        help="'embedded', a directory, a .gguf file, a hub id like org/name, or a GGUF file on the hub like "
        "org/name:Q4_K_M (default: embedded)",
    )
    command.add_argument(
        "--quantization",
        default="auto",
        choices=("none", "int8", "nf4", "shipped", "auto"),
        help="'shipped' keeps the bits of a .gguf file or of a quantised checkpoint, 'nf4' is 4 bits and 'int8' 8 bits "
        "through bitsandbytes, 'none' runs 16 or 32 bits, 'auto' is 'shipped' for what is quantised already and 'nf4' "
        "for everything else (default: auto)",
    )
    command.add_argument(
        "--cpu-activations",
        default="auto",
        choices=get_args(CpuActivations),
        help="what Keepwarm's own CPU kernels multiply quantised weights by: 'int8' rounds it to bytes with a scale "
        "for 32 numbers, which is faster and not exact, 'int16' to two bytes, slower and a hundred times more exact, "
        "'float32' does not round, 'auto' is 'int8' for large models that lose little by it, which is measured at the "
        "start, and 'int16' for the others (default: auto)",
    )
    command.add_argument(
        "--chat-preset",
        choices=CHAT_PRESETS,
        metavar="NAME",
        help=f"how a conversation is written for a model without a chat template: {', '.join(CHAT_PRESETS)} "
        "(default: the model's own template, or the format of its model card where that is known)",
    )
    command.add_argument(
        "--data-dir",
        type=Path,
        default=data_dir,
        metavar="DIR",
        help=f"where conversations are stored (default: {data_dir})".replace("%", "%%"),
    )
    command.add_argument(
        "--context-limit",
        type=int,
        metavar="TOKENS",
        help="longest conversation, in tokens (default: the model's own limit)",
    )


def model_config(arguments: argparse.Namespace) -> ModelConfig:
    """The model that the flags name. Raises `ValueError` with a sentence."""
    try:
        arguments.model.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"The model's name {arguments.model} is not UTF-8 in this locale, so its files could not be opened. "
            "Set LC_ALL=C.UTF-8, or rename it."
        ) from None
    return ModelConfig(
        model=arguments.model,
        quantization=arguments.quantization,
        cpu_activations=arguments.cpu_activations,
        context_limit_tokens=arguments.context_limit,
        chat_preset=arguments.chat_preset,
    )
