"""Which bodies the page's routes accept. Runs beside Chromium, whose event loop Gradio uses instead of its own."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from playwright.sync_api import Browser

from app.paths import ASK_PATH
from tests.app.site import Site

pytestmark = pytest.mark.browser
MIB = 2**20


def test_the_page_takes_a_message_and_forms_a_few_kib(chromium: Browser, serve: Callable[..., Site]) -> None:
    site = serve(password="secret")
    with httpx.Client(base_url=site.url, timeout=30) as http:
        assert http.post("/login", data={"password": "x" * 20_000}).status_code == 413
        assert http.post("/login", data={"password": "wrong"}).status_code == 401
        assert http.post(ASK_PATH, content=b"x" * 9 * MIB).status_code == 401  # before its size is looked at
        assert http.post("/login", data={"password": "secret"}).status_code == 303
        assert http.post(ASK_PATH, content=b"x" * 9 * MIB).status_code == 413
        assert http.post("/logout", content=b"x" * 20_000).status_code == 413
        wide = b'{"data":[' + b"{}," * 100_000 + b"{}]}"
        refused = http.post(ASK_PATH, content=wide, headers={"Content-Type": "application/json"})
        assert refused.status_code == 400
        assert "more than 5,000 values" in refused.json()["detail"]
