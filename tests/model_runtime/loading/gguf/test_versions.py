"""What earlier versions converted: used where it still means the same, deleted where it does not."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path

import pytest

from model_runtime.loading.embedded import SMOLLM2
from model_runtime.loading.gguf.conversion import FORMAT_VERSION, convert_gguf
from model_runtime.loading.model_cache import converted_gguf
from tests.model_runtime.loading.gguf.cases import CASES

_EMBEDDED_CRC32 = {
    "blocks.safetensors": 1331302089,
    "chat_template.jinja": 3167515029,
    "source.json": 2660956292,
    "tokenizer.json": 2877921301,
}
_EMBEDDED_CONFIG_CRC32 = 2290598767


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    case = CASES["llama"]
    return case.write(tmp_path / "model.gguf", case.model())


def test_a_file_of_an_earlier_version_is_converted_again(gguf_file: Path, tmp_path: Path) -> None:
    new = converted_gguf(lambda: gguf_file, "key", tmp_path, lambda _: None)
    assert new.name == f"key-v{FORMAT_VERSION}"
    older, of_others = new.with_name("key-v1"), new.with_name("key-v1-float16")
    new.rename(older)
    shutil.copytree(older, of_others)
    (of_others / "notes.txt").write_text("mine")
    assert converted_gguf(lambda: gguf_file, "key", tmp_path, lambda _: None) == new
    assert (new.exists(), older.exists(), of_others.exists()) == (True, False, True)


def test_the_embedded_model_keeps_its_directory(tmp_path: Path, gguf_file: Path) -> None:
    found = converted_gguf(lambda: gguf_file, SMOLLM2.name, tmp_path, lambda _: None, embedded=True)
    assert found.name == f"{SMOLLM2.name}-v1"


def test_the_embedded_model_is_converted_to_the_same_bytes(embedded_cache: Path, tmp_path: Path) -> None:
    """Saved conversations are bound to them. The libraries' own versions, which some files name, are not compared."""
    convert_gguf(embedded_cache / "embedded" / SMOLLM2.gguf_name, tmp_path, splits_as_stated=False)
    found = {path.name: zlib.crc32(path.read_bytes()) for path in tmp_path.iterdir()}
    assert found.keys() == {*_EMBEDDED_CRC32, "config.json", "tokenizer_config.json"}
    assert {name: found[name] for name in _EMBEDDED_CRC32} == _EMBEDDED_CRC32
    config = json.loads((tmp_path / "config.json").read_text())
    del config["transformers_version"]
    assert zlib.crc32(json.dumps(config, sort_keys=True).encode()) == _EMBEDDED_CONFIG_CRC32
