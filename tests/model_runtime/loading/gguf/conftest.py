"""Loads files with kernels that are compiled once for all tests of a process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from model_runtime.interface.config import ModelConfig, Quantization
from model_runtime.loading.loaded import LoadedModel
from model_runtime.loading.loading import load_model
from model_runtime.weights.kernel_choice import kernel_plan


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory, torch_threads: int) -> Path:
    directory = tmp_path_factory.mktemp("cache")
    kernel_plan(directory, print)
    return directory


@pytest.fixture
def load(cache_dir: Path, tmp_path: Path) -> Callable[[Path, Quantization], LoadedModel]:
    shutil.copytree(cache_dir, tmp_path / "cache")

    def load(model: Path, quantization: Quantization) -> LoadedModel:
        config = ModelConfig(str(model), quantization, cache_dir=tmp_path / "cache", device="cpu")
        return load_model(config, lambda _: None)

    return load
