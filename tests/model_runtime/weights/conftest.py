"""The CPU kernels, compiled once for all tests of a process."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from model_runtime.native.native_library import native_library

# What compilers on other processors may use: 16, 8 and 4 lanes at a time.
PROCESSORS = {"this one": (), "AVX2": ("-mno-avx512f",), "SSE": ("-march=x86-64-v2",)}


@pytest.fixture(scope="session")
def build_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="session", params=PROCESSORS)
def library(request: pytest.FixtureRequest, build_dir: Path, torch_threads: int) -> ctypes.CDLL:
    return native_library(build_dir, print, PROCESSORS[request.param])
