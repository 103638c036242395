"""A session manager without a model: real SQLite files, real threads, the scripted engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.sessions.session_harness import SessionHarness

MakeHarness = Callable[..., SessionHarness]


@pytest.fixture
def make_harness(tmp_path: Path) -> Iterator[MakeHarness]:
    """Makes harnesses with the given settings, on one data directory unless told otherwise. Closes them at the end."""
    harnesses: list[SessionHarness] = []

    def make(**settings: object) -> SessionHarness:
        harness = SessionHarness(**{"data_dir": tmp_path / "data", **settings})  # type: ignore[arg-type]
        harnesses.append(harness)
        return harness

    yield make
    for harness in harnesses:
        harness.close()


@pytest.fixture
def harness(make_harness: MakeHarness) -> SessionHarness:
    return make_harness()
