"""Files and settings of a model's directory that are not read: adapters, folders, code, a second template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model_runtime.interface.config import ModelConfig
from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.checks.other_files import file_notes, refuse_other_models
from model_runtime.loading.loading import load_model


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


@pytest.mark.parametrize("has_config", [True, False])
def test_an_adapter_is_no_model_alone(tmp_path: Path, has_config: bool) -> None:
    write(tmp_path / "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "org/base"})
    if has_config:
        write(tmp_path / "config.json", {"model_type": "llama"})
    with pytest.raises(ModelLoadError, match=r"is an adapter \(LORA\) for org/base, and adapters are not applied"):
        load_model(ModelConfig(model=str(tmp_path), device="cpu"), lambda _: None)


def test_a_model_in_a_folder_below_is_pointed_to(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write(tmp_path / name / "config.json", {})
    with pytest.raises(ModelLoadError, match="Its folders have one: name a, b"):
        load_model(ModelConfig(model=str(tmp_path), device="cpu"), lambda _: None)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"config.json": {"auto_map": {"AutoModel": "m.M"}}}, "The model brings Python code of its own (auto_map)"),
        ({"tokenizer_config.json": {"auto_map": {"x": "t.T"}}}, "The tokenizer brings Python code of its own"),
        (
            {"tokenizer_config.json": {"chat_template": "a"}, "chat_template.jinja": "b"},
            "The chat template of chat_template.jinja is used",
        ),
        ({"tokenizer_config.json": {"clean_up_tokenization_spaces": True}}, "clean_up_tokenization_spaces"),
        ({"model.safetensors": "x", "model.safetensors.index.json": {}}, "model.safetensors.index.json is ignored"),
    ],
)
def test_what_is_not_done_is_named(tmp_path: Path, files: dict[str, Any], words: str) -> None:
    for name, value in files.items():
        write(tmp_path / name, value)
    (note,) = file_notes(tmp_path)
    assert words in note


def test_an_ordinary_directory_has_no_notes(tmp_path: Path) -> None:
    write(tmp_path / "config.json", {"model_type": "llama"})
    write(tmp_path / "tokenizer_config.json", {"chat_template": "a", "clean_up_tokenization_spaces": False})
    write(tmp_path / "chat_template.jinja", "a")
    write(tmp_path / "model.safetensors", "x")
    refuse_other_models(tmp_path)
    assert list(file_notes(tmp_path)) == []
