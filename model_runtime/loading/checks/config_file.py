"""Reads a checkpoint's config.json, and builds the config and the weightless model that it describes. Every failure is
a sentence that names the model and, where it can, the setting."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from model_runtime.architecture.model_class import auto_class, text_alone
from model_runtime.architecture.setting_rules import OF_ENTRIES, broken_rule, shown
from model_runtime.interface.errors import ModelLoadError

MOST_CONFIG_BYTES = 16 << 20
_TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config")
_WHAT_FAILS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_FIELD = re.compile("Validation error for field '(.*)'")
_KIND = re.compile(r"^\w+(Error|Exception): ")


def read_config(path: Path) -> dict[str, object]:
    """The JSON object in a file. Raises `FileNotFoundError`, or `ModelLoadError`."""
    try:
        if path.exists() and not path.is_file():
            raise ModelLoadError(f"{path} is not a regular file.")
        if path.stat().st_size > MOST_CONFIG_BYTES:
            raise ModelLoadError(f"{path} is too large to be a model's description.")
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except RecursionError:
        raise ModelLoadError(f"{path} cannot be read: it is nested too deeply.") from None
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}.") from error
    if not isinstance(found, dict):
        raise ModelLoadError(f"{path} does not contain a model description.")
    return found


def read_model_config(directory: Path, name: str | None = None) -> PretrainedConfig:
    """The config of the checkpoint in `directory`, which messages call `name`; of a composite model that is loaded as a
    text model, its text part. Raises `ModelLoadError` for one that
    belongs to no model, `FileNotFoundError` without one."""
    name = name or directory.name
    entries = read_config(directory / "config.json")
    _refuse_unknown(entries, name)
    wrong = next(_wrong_entries(entries), None)
    if wrong:
        raise ModelLoadError(f"{name} cannot be used: {wrong}.")
    try:
        return text_alone(AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False))
    except (StrictDataclassError, *_WHAT_FAILS) as error:
        if "trust_remote_code" in str(error):
            raise
        raise ModelLoadError(f"{name} cannot be used: transformers refuses its config: {_why(error)}.") from error


def described_model(config: PretrainedConfig, name: str) -> PreTrainedModel:
    """The model of a config, on the meta device: its modules have shapes, and no memory. Raises `ModelLoadError`."""
    try:
        with init_empty_weights(include_buffers=True):
            model: PreTrainedModel = auto_class(config).from_config(
                config, dtype=torch.float32, trust_remote_code=False
            )
    except ImportError as error:
        raise ModelLoadError(f"{name} cannot be loaded: {_why(error).partition('. ')[0]}.") from error
    except _WHAT_FAILS as error:
        raise ModelLoadError(f"{name} cannot be used: no model can be built from its config: {_why(error)}.") from error
    return model


def _refuse_unknown(entries: Mapping[str, Any], name: str) -> None:
    family = entries.get("model_type")
    if family is None:
        raise ModelLoadError(
            f"{name} cannot be used: its config has no model_type, so that it is not known which model it describes."
        )
    if not isinstance(family, str):
        raise ModelLoadError(f"{name} cannot be used: its config's model_type is {shown(family)}, and must be a name.")
    if family not in CONFIG_MAPPING and not entries.get("auto_map"):
        raise ModelLoadError(
            f"{name} cannot be used: its config's model_type is {shown(family)}, which transformers "
            f"{transformers.__version__} does not know."
        )


def _wrong_entries(entries: Mapping[str, Any], part: str = "") -> Iterator[str]:
    for key, value in entries.items():
        for one in value if isinstance(value, list) else (value,):
            rule = None if isinstance(one, Mapping) else broken_rule(key, one, OF_ENTRIES)
            if rule:
                yield f"its {part}{key} is {shown(one)}, and must be {rule.must_be}"
        if key in ("dtype", "torch_dtype") and isinstance(value, str) and not _is_dtype(value):
            yield f"its {part}{key} is {shown(value)}, and torch has no numbers of that kind"
        if key in _TEXT_PARTS and isinstance(value, Mapping):
            yield from _wrong_entries(value, f"{part}{key}.")
    base, rope = entries.get("rope_theta"), entries.get("rope_parameters") or entries.get("rope_scaling")
    other = rope.get("rope_theta") if isinstance(rope, Mapping) else None
    if isinstance(base, (int, float)) and isinstance(other, (int, float)) and base != other:
        yield f"its {part}rope_theta is {base}, and {other} among its rotary parameters: only one of them can be right"


def _is_dtype(name: str) -> bool:
    return isinstance(getattr(torch, name, None), torch.dtype)


def _why(error: Exception) -> str:
    """What an error of transformers says, in one line without a full stop."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    line = lines[-1] if isinstance(error, StrictDataclassError) else lines[0]
    said = _KIND.sub("", line)[:300].rstrip(".: ").replace("the number of attention heads", "num_attention_heads")
    field = _FIELD.match(lines[0])
    if field and field[1] not in said:
        return f"{field[1]}: {said}"
    return f"it has no {said!r}" if isinstance(error, KeyError) and " " not in said else said
