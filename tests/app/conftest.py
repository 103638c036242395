"""Fixtures for tests of the page and the API: one Chromium, OpenAI's client, and sites and tabs that are always
closed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from playwright.sync_api import Browser, ViewportSize, expect, sync_playwright

from tests.app.site import Site, Tab

CHROMIUM_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]

WIDE: ViewportSize = {"width": 1440, "height": 900}
expect.set_options(timeout=15_000)  # several workers share few processors
LOCAL = "local"  # the owner where no password is set
MODEL = "Scripted-1B"
Serve = Callable[..., Site]
Connect = Callable[..., OpenAI]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    assert path is not None, "Chromium is missing: install it with `apt-get install chromium`."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """`serve(password=None, **engine)` starts a site in this test's data directory."""
    sites: list[Site] = []

    def start(**options: Any) -> Site:
        site = Site(tmp_path / "data", **options)
        sites.append(site)
        return site

    yield start
    for site in sites:
        site.close()


@pytest.fixture
def tab(chromium: Browser) -> Iterator[Callable[..., Tab]]:
    """`tab(url, **context)`: a tab in a fresh browser profile. No script may fail in it, no request leave the host."""
    tabs: list[Tab] = []

    def start(url: str, **context: Any) -> Tab:
        page = chromium.new_context(**{"viewport": WIDE, **context}).new_page()
        tabs.append(Tab(page, url))
        return tabs[-1]

    yield start
    for one in tabs:
        one.page.context.close()
        assert one.problems == []
        assert outside(one) == []


@pytest.fixture(scope="module")
def module_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("module"))
    yield site
    site.close()


@pytest.fixture(scope="module")
def module_tab(chromium: Browser, module_site: Site) -> Iterator[Tab]:
    one = Tab(chromium.new_context(viewport=WIDE).new_page(), module_site.url)
    yield one
    one.page.context.close()


@pytest.fixture
def shared_site(module_site: Site) -> Iterator[Site]:
    """A site that a module's tests share, without conversations. Its engine may be made slower, or fail."""
    engine = module_site.engine
    usual = engine.answer, engine.fail, engine.token_delay_s, engine.fed_token_delay_s
    yield module_site
    engine.answer, engine.fail, engine.token_delay_s, engine.fed_token_delay_s = usual
    for summary in module_site.manager.list_conversations(LOCAL):
        module_site.manager.delete(LOCAL, summary.conversation_id)


@pytest.fixture
def one(shared_site: Site, module_tab: Tab) -> Iterator[Tab]:
    """A tab of the shared site at an empty conversation. The tests of a module share it: to start a site and load the
    page costs more than most of them."""
    module_tab.problems.clear()
    module_tab.requests.clear()
    yield module_tab.start_over()
    assert module_tab.problems == []
    assert outside(module_tab) == []


@pytest.fixture
def connect() -> Iterator[Connect]:
    """`connect(site, key)`: an OpenAI client that never retries by itself."""
    clients: list[OpenAI] = []

    def start(site: Site, key: str = "unused") -> OpenAI:
        clients.append(OpenAI(base_url=f"{site.url}/v1", api_key=key, max_retries=0, timeout=30))
        return clients[-1]

    yield start
    for client in clients:
        client.close()


@pytest.fixture
def site(serve: Serve) -> Site:
    return serve(headless=True)


@pytest.fixture
def http(site: Site) -> Iterator[httpx.Client]:
    """Plain HTTP to the site."""
    with httpx.Client(base_url=site.url, timeout=30) as client:
        yield client


def outside(one: Tab) -> list[str]:
    """The requests that left the host."""
    return [url for url in one.requests if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}
