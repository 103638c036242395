"""NF4 matrices are quantised once: the next start reads what was kept of them, and computes the same numbers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model_runtime.interface.config import ModelConfig
from model_runtime.loading import model_cache
from model_runtime.loading.loaded import LoadedModel
from model_runtime.loading.loading import load_model
from model_runtime.loading.sealed_directory import is_ours, sealed_in
from model_runtime.weights import streamed
from tests.conftest import TinyDir
from tests.model_runtime.tiny_models import VOCABULARY_TOKENS
from tests.model_runtime.weights.test_native_experts import written

Start = Callable[[], tuple[LoadedModel, list[str]]]


@pytest.fixture
def checkpoint(request: pytest.FixtureRequest, tiny_dir: TinyDir, tmp_path: Path) -> Path:
    """A copy, which a test may change."""
    if request.param == "qwen3_moe":
        return written("qwen3_moe", tmp_path)
    return Path(shutil.copytree(tiny_dir(request.param), tmp_path / request.param))


@pytest.fixture
def start(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Loads it, and gives what was said; however small it is, it is worth a file."""
    monkeypatch.setattr(model_cache, "LEAST_KEPT_WEIGHTS", 1)

    def load() -> tuple[LoadedModel, list[str]]:
        said: list[str] = []
        config = ModelConfig(str(checkpoint), "nf4", cache_dir=tmp_path / "cache", device="cpu")
        return load_model(config, said.append), said

    return load


@pytest.fixture
def quantised(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what was quantised while the weights were filled in."""
    seen: list[tuple[int, ...]] = []
    real = streamed.quantise_nf4

    def quantise(numbers: torch.Tensor, after_slice: Callable[[], None]) -> object:
        seen.append(tuple(numbers.shape))
        return real(numbers, after_slice)

    monkeypatch.setattr(streamed, "quantise_nf4", quantise)
    return seen


@torch.inference_mode()
def logits(loaded: LoadedModel) -> torch.Tensor:
    found: torch.Tensor = loaded.model(
        torch.arange(40).remainder(VOCABULARY_TOKENS).view(2, 20), use_cache=False
    ).logits
    return found


def kept_in(tmp_path: Path) -> list[Path]:
    return [one.path for one in sealed_in(tmp_path / "cache" / "models") if "-nf4-" in one.path.name]


@pytest.mark.parametrize("checkpoint", ["llama", "qwen3", "qwen3_moe"], indirect=True)
def test_what_was_kept_is_what_would_be_quantised(
    start: Start, quantised: list[tuple[int, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without:
        without.setattr(model_cache, "LEAST_KEPT_WEIGHTS", 1 << 60)
        now, _ = start()
    assert kept_in(tmp_path) == []
    many = len(quantised)
    first, _ = start()
    (kept,) = kept_in(tmp_path)
    files = {path.name: path.stat().st_mtime_ns for path in kept.iterdir() if path.name != "manifest.json"}
    second, _ = start()
    assert len(quantised) == many > 0  # by the first start alone
    assert {path.name: path.stat().st_mtime_ns for path in kept.iterdir() if path.name != "manifest.json"} == files
    assert torch.equal(logits(first), logits(now))
    assert torch.equal(logits(second), logits(now))
    for field in ("fingerprint", "quantization", "weights_bytes"):
        assert getattr(first, field) == getattr(second, field) == getattr(now, field)
    size_bytes = sum(path.stat().st_size for path in kept.iterdir())
    assert size_bytes < 0.6 * sum(rows * columns for rows, columns in quantised) + 100_000


@pytest.mark.parametrize("checkpoint", ["llama"], indirect=True)
def test_other_weights_are_quantised_anew(start: Start, checkpoint: Path, tmp_path: Path) -> None:
    before, _ = start()
    path = checkpoint / "model.safetensors"
    data = bytearray(path.read_bytes())
    middle = len(data) // 2 // 4 * 4
    data[middle : middle + 4096] = bytes(4096)
    path.write_bytes(data)
    after, _ = start()
    assert len(kept_in(tmp_path)) == 2
    assert not torch.equal(logits(before), logits(after))


@pytest.mark.parametrize("checkpoint", ["llama"], indirect=True)
def test_damage_is_noticed_and_mended(start: Start, tmp_path: Path) -> None:
    before, _ = start()
    (kept,) = kept_in(tmp_path)
    file = kept / "nf4.safetensors"
    with file.open("r+b") as handle:
        handle.seek(file.stat().st_size // 2)
        handle.write(b"damage")
    after, said = start()
    assert any("damaged" in sentence for sentence in said)
    assert torch.equal(logits(before), logits(after))
    assert is_ours(kept)


@pytest.mark.parametrize("checkpoint", ["llama"], indirect=True)
@pytest.mark.parametrize("obstacle", ["no directory", "no room"])
def test_a_cache_without_room_costs_time_alone(
    obstacle: str, start: Start, quantised: list[tuple[int, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if obstacle == "no directory":
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "models").write_text("a file")
    else:
        monkeypatch.setattr(model_cache, "MOST_MODELS_BYTES", 1000)
    loaded, said = start()
    assert any(sentence.endswith("again at every start.") for sentence in said)
    assert quantised
    assert torch.isfinite(logits(loaded)).all()
    assert os.path.isfile(tmp_path / "cache" / "models") or kept_in(tmp_path) == []
