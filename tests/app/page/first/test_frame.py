"""The frame: what it says is text, and its data cannot end the script that it stands in."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from model_runtime.interface.protocol import ModelInfo
from sessions.manager import SessionManager
from tests.app.site import Site

NASTY = "</script><img src=x>$facts ${facts} &amp; 'é\""


def test_a_models_name_is_text_wherever_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = SessionManager.info.fget  # type: ignore[attr-defined]

    def named(manager: SessionManager) -> ModelInfo:
        return replace(usual(manager), name=NASTY, notes=(NASTY,))  # type: ignore[no-any-return]

    monkeypatch.setattr(SessionManager, "info", property(named))
    site = Site(tmp_path / "data")
    try:
        page = httpx.get(site.url, timeout=20).text
    finally:
        site.close()
    assert "<img" not in page
    assert page.count("&lt;/script&gt;&lt;img src=x&gt;$facts ${facts} &amp;amp;") == 2
    found = re.search(r'<script type="application/json" id="kw-facts">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    facts = json.loads(found[1])
    assert facts["header"]["notes"] == [NASTY]
