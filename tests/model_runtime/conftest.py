"""The C compiler that tests get, and a directory that all processes of a run share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def build_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all workers of a run."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "kernels"


@pytest.fixture(scope="session", autouse=True)
def compiler_that_compiles_once(build_dir: Path) -> Iterator[None]:
    """Each version of the CPU kernels is compiled once in a run, whatever cache directories its tests have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CC", str(Path(__file__).with_name("compile_once.sh")))
        patch.setenv("KEPT_LIBRARIES", str(build_dir / "kept"))
        yield
