"""Fixtures that several packages share. Torch is imported by the fixtures that need it: most tests do not."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from model_runtime.loading.loaded import LoadedModel

pytest_plugins = ["tests.alone"]

# An example that takes longer than 200 ms is no fault: the machine may have other work.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

TinyDir = Callable[[str], Path]


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """What the imports made lives to the end: without this, each full collection of garbage goes through all of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def torch_threads() -> int:
    """How many threads torch uses: more than four only make small models slower."""
    import torch

    torch.set_num_threads(min(4, os.cpu_count() or 1))
    return torch.get_num_threads()


@pytest.fixture(scope="session")
def embedded_cache(torch_threads: int) -> Path:
    """The user's own cache directory with the embedded model in it: fetched once, then kept between test runs."""
    from model_runtime.interface.config import EMBEDDED, ModelConfig
    from model_runtime.loading.loading import load_model, unload

    config = ModelConfig(model=EMBEDDED, quantization="shipped", device="cpu")
    unload(load_model(config, print))
    return config.cache_dir


@pytest.fixture(scope="session")
def loaded_embedded(embedded_cache: Path) -> Iterator[LoadedModel]:
    """The embedded model as it was shipped, at 4 bits."""
    yield from _loaded_embedded(embedded_cache, "shipped")


@pytest.fixture(scope="session")
def loaded_embedded_float32(embedded_cache: Path) -> Iterator[LoadedModel]:
    """The embedded model de-quantised to float32: the reference."""
    yield from _loaded_embedded(embedded_cache, "none")


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory, torch_threads: int) -> TinyDir:
    """`tiny_dir("llama")`, "qwen3", "gemma3" or "gptbigcode": the directory of that tiny random checkpoint."""
    from tests.model_runtime import tiny_models

    made: dict[str, Path] = {}

    def directory(name: str) -> Path:
        if name not in made:
            made[name] = getattr(tiny_models, f"tiny_{name}")(tmp_path_factory.mktemp("tiny") / name)
        return made[name]

    return directory


def _loaded_embedded(cache_dir: Path, quantization: str) -> Iterator[LoadedModel]:
    from model_runtime.interface.config import EMBEDDED, ModelConfig
    from model_runtime.loading.loading import load_model, unload

    loaded = load_model(
        ModelConfig(model=EMBEDDED, quantization=quantization, cache_dir=cache_dir, device="cpu"), print
    )
    yield loaded
    unload(loaded)
