"""The CPU kernels, for every width of registers."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from model_runtime.native.native_library import native_library

# What compilers on other processors may use: 16, 8 and 4 lanes at a time. To optimise for 4 takes them 20 s.
PROCESSORS = {"this one": (), "AVX2": ("-mno-avx512f", "-mno-avxvnni"), "SSE": ("-march=x86-64-v2", "-O1")}


@pytest.fixture(scope="session")
def own_library(build_dir: Path, torch_threads: int) -> ctypes.CDLL:
    """The kernels as they are compiled for this processor."""
    return native_library(build_dir, print)


@pytest.fixture(scope="session")
def libraries(build_dir: Path, torch_threads: int) -> dict[str, ctypes.CDLL]:
    """The kernels compiled for each of `PROCESSORS`."""
    return {name: native_library(build_dir, print, flags) for name, flags in PROCESSORS.items()}


@pytest.fixture(scope="session", params=PROCESSORS)
def library(request: pytest.FixtureRequest, build_dir: Path, torch_threads: int) -> ctypes.CDLL:
    return native_library(build_dir, print, PROCESSORS[request.param])
