"""GGUF files on the hub, through the hub's real client: chosen by their bits, refused before anything is downloaded."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from gguf import GGMLQuantizationType

from model_runtime.interface.config import ModelConfig
from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.hub import downloads
from model_runtime.loading.hub.gguf_files import chosen_gguf, split_choice
from model_runtime.loading.loading import load_model
from tests.conftest import TinyDir
from tests.model_runtime.loading.scripted_hub import ScriptedHub, serve
from tests.model_runtime.tiny_gguf import write_gguf

MANY = {
    "README.md": 10,
    "model-Q4_K_M.gguf": 500,
    "model-UD-Q4_K_M.gguf": 500,
    "model-Q4_K_S.gguf": 400,
    "model.IQ4_XS.gguf": 400,
    "mmproj-model-f16.gguf": 90,
    "Q8_0/model-Q8_0-00001-of-00002.gguf": 700,
    "Q8_0/model-Q8_0-00002-of-00002.gguf": 300,
    "model-Q6_K-00001-of-00003.gguf": 700,
    "model-Q6_K-00003-of-00003.gguf": 700,
}


@pytest.mark.parametrize(
    ("choice", "paths"),
    [
        ("Q4_K_S", ("model-Q4_K_S.gguf",)),
        ("q4_k_s", ("model-Q4_K_S.gguf",)),
        ("IQ4_XS", ("model.IQ4_XS.gguf",)),
        ("UD-Q4_K_M", ("model-UD-Q4_K_M.gguf",)),
        ("model-Q4_K_M", ("model-Q4_K_M.gguf",)),
        ("model-Q4_K_M.gguf", ("model-Q4_K_M.gguf",)),
        ("Q8_0", ("Q8_0/model-Q8_0-00001-of-00002.gguf", "Q8_0/model-Q8_0-00002-of-00002.gguf")),
    ],
)
def test_a_file_is_chosen_by_the_end_of_its_name(choice: str, paths: tuple[str, ...]) -> None:
    assert chosen_gguf("org/name", choice, MANY).paths == paths


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        ("Q4_K_M", r"several GGUF files whose names end with Q4_K_M\. .*: model-Q4_K_M \(.*\), model-UD-Q4_K_M \("),
        ("Q4_K", r"no GGUF file whose name ends with Q4_K\. .*model-Q4_K_S .*model-Q8_0 \("),
        ("K_M", "no GGUF file whose name ends with K_M"),
        ("f16", "no GGUF file whose name ends with f16"),
        (None, "has several GGUF files"),
        ("Q6_K", "has 2 parts of model-Q6_K, and its files say that there are 3"),
    ],
)
def test_what_is_not_clear_is_refused_with_what_there_is(choice: str | None, sentence: str) -> None:
    with pytest.raises(ModelLoadError, match=f"^org/name .*{sentence}") as refused:
        chosen_gguf("org/name", choice, MANY)
    assert "mmproj" not in str(refused.value)


def test_names_with_and_without_a_choice() -> None:
    assert split_choice("org/name:Q4_K_M") == ("org/name", "Q4_K_M")
    for name in ("org/name", "name", "C:/models/x.gguf", "org/name:", "/a/b:c"):
        assert split_choice(name) == (name, None)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedHub]:
    cache = tmp_path / "hub-cache"
    with serve(tmp_path / "hub") as (address, scripted):
        # The client read its environment (HF_ENDPOINT, HF_HUB_CACHE) when it was imported.
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(downloads, "HF_HUB_CACHE", str(cache))
        yield scripted


@pytest.fixture
def repository(hub: ScriptedHub, tiny_dir: TinyDir) -> Path:
    folder = hub.root / "org" / "tiny-GGUF"
    folder.mkdir(parents=True)
    write_gguf(tiny_dir("llama"), folder / "tiny-Q4_1.gguf", GGMLQuantizationType.Q4_1)
    (folder / "tiny-Q8_0.gguf").write_bytes(b"never read")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def load(name: str, tmp_path: Path) -> str:
    config = ModelConfig(name, "none", cache_dir=tmp_path / "cache", device="cpu")
    return load_model(config, lambda _: None).name


def test_a_gguf_is_downloaded_alone_and_loaded(hub: ScriptedHub, repository: Path, tmp_path: Path) -> None:
    assert load("org/tiny-GGUF:Q4_1", tmp_path) == "tiny-Q4_1"
    assert sorted(hub.asked) == ["config.json", "tiny-Q4_1.gguf"]
    assert load("org/tiny-GGUF:Q4_1", tmp_path) == "tiny-Q4_1"
    assert len(hub.asked) == 2


def test_the_only_gguf_needs_no_choice(hub: ScriptedHub, repository: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"^org/tiny-GGUF has several GGUF files"):
        load("org/tiny-GGUF", tmp_path)
    assert hub.asked == ["config.json"]
    single = shutil.copytree(repository, hub.root / "org" / "single-GGUF")
    (single / "tiny-Q8_0.gguf").unlink()
    assert load("org/single-GGUF", tmp_path) == "tiny-Q4_1"


def test_a_missing_choice_and_a_missing_repository_are_sentences(
    hub: ScriptedHub, repository: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelLoadError, match=r"ends with Q5_K_M\. .*tiny-Q4_1 .*tiny-Q8_0"):
        load("org/tiny-GGUF:Q5_K_M", tmp_path)
    with pytest.raises(ModelLoadError, match="The hub has no model org/nothing"):
        load("org/nothing:Q4_K_M", tmp_path)
    assert hub.asked == ["config.json"]


def test_what_fits_neither_memory_nor_disk_is_not_downloaded(
    hub: ScriptedHub, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("model_runtime.loading.loading.free_bytes", lambda _: 1000)
        patch.setattr("model_runtime.loading.loading.swap_bytes", lambda _: 0)
        with pytest.raises(ModelLoadError, match=r"^org/tiny-GGUF:tiny-Q4_1 cannot be loaded: it needs 0\.\d MiB"):
            load("org/tiny-GGUF:Q4_1", tmp_path)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ModelLoadError, match="cannot be downloaded"):
        load("org/tiny-GGUF:Q4_1", tmp_path)
    assert set(hub.asked) == {"config.json"}
