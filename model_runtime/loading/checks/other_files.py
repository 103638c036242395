"""What else lies in a model's directory, or is asked for in its files, that is not read: refused or named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.checks.checkpoint_check import INDEX_FILE
from model_runtime.loading.checks.config_file import read_config

ADAPTER_FILE = "adapter_config.json"
TOKENIZER_FILE, TEMPLATE_FILE = "tokenizer_config.json", "chat_template.jinja"


def refuse_other_models(directory: Path) -> None:
    """Raises `ModelLoadError` for an adapter, which is no model alone, and for a directory whose model lies deeper."""
    adapter = _json(directory / ADAPTER_FILE)
    if adapter is not None:
        base = str(adapter.get("base_model_name_or_path") or "another model")[:200]
        raise ModelLoadError(
            f"{directory.name} is an adapter ({adapter.get('peft_type', 'LoRA')}) for {base}, and adapters are not "
            "applied. Merge it into the model (peft's merge_and_unload), save that, and name its directory."
        )
    if not (directory / "config.json").exists():
        below = sorted(path.parent.name for path in directory.glob("*/config.json"))[:3]
        if below:
            raise ModelLoadError(
                f"{directory} is not a model: it has no config.json. Its folders have one: name {', '.join(below)}."
            )


def file_notes(directory: Path) -> Iterator[str]:
    """Sentences about settings and files of the directory that change nothing here. Raises `ModelLoadError` for files
    that cannot be read."""
    config, tokenizer = _json(directory / "config.json") or {}, _json(directory / TOKENIZER_FILE) or {}
    for what, settings in (("model", config), ("tokenizer", tokenizer)):
        if settings.get("auto_map"):
            yield (
                f"The {what} brings Python code of its own (auto_map), which Keepwarm never runs: transformers' own "
                "code for it is used."
            )
    if (directory / "model.safetensors").is_file() and (directory / INDEX_FILE).is_file():
        yield f"The weights are read from model.safetensors; {INDEX_FILE} is ignored."
    if tokenizer.get("chat_template") and (directory / TEMPLATE_FILE).is_file():
        text = (directory / TEMPLATE_FILE).read_text(encoding="utf-8", errors="replace")
        if text != tokenizer["chat_template"]:
            yield f"The chat template of {TEMPLATE_FILE} is used; the other one, of {TOKENIZER_FILE}, is ignored."
    if tokenizer.get("clean_up_tokenization_spaces"):
        yield (
            "The tokenizer asks to remove spaces before punctuation (clean_up_tokenization_spaces); answers are shown "
            "as the model wrote them."
        )


def _json(path: Path) -> Mapping[str, Any] | None:
    try:
        return read_config(path)
    except FileNotFoundError:
        return None
