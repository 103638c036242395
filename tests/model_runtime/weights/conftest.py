"""The CPU kernels, compiled once for all tests of a run."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from model_runtime.native.native_library import native_library

# What compilers on other processors may use: 16, 8 and 4 lanes at a time.
PROCESSORS = {"this one": (), "AVX2": ("-mno-avx512f",), "SSE": ("-march=x86-64-v2",)}


@pytest.fixture(scope="session")
def build_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all workers of a run: each library is compiled once."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "kernels"


@pytest.fixture(scope="session", params=PROCESSORS)
def library(request: pytest.FixtureRequest, build_dir: Path, torch_threads: int) -> ctypes.CDLL:
    return native_library(build_dir, print, PROCESSORS[request.param])
