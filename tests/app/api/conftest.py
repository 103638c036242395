"""A server that all tests of a module share, for shapes that need no state of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.app.site import Site

ServeOnce = Callable[..., Site]


@pytest.fixture(scope="module")
def serve_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeOnce]:
    """`serve_once(**options)` starts a site that lives as long as the module's tests."""
    sites: list[Site] = []

    def start(**options: Any) -> Site:
        sites.append(Site(tmp_path_factory.mktemp("site") / "data", **{"headless": True, **options}))
        return sites[-1]

    yield start
    for site in sites:
        site.close()
