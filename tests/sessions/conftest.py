"""A session manager without a model: real SQLite files, real threads, the scripted engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.sessions.house import House

MakeHouse = Callable[..., House]


@pytest.fixture
def make_house(tmp_path: Path) -> Iterator[MakeHouse]:
    """Makes houses with the given settings, on one data directory unless another is given. Closes them at the end."""
    houses: list[House] = []

    def make(**settings: object) -> House:
        house = House(**{"data_dir": tmp_path / "data", **settings})  # type: ignore[arg-type]
        houses.append(house)
        return house

    yield make
    for house in houses:
        house.close()


@pytest.fixture
def house(make_house: MakeHouse) -> House:
    return make_house()
