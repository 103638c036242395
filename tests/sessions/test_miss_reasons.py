"""Every reason that a receipt gives is in the documents that list them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sessions.types import MissReason

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", ["api.md", "memory.md"])
def test_every_reason_is_explained(name: str) -> None:
    text = (DOCS / name).read_text(encoding="utf-8")
    assert [reason.value for reason in MissReason if f"`{reason}`" not in text] == []
