"""The real page on a free loopback port with a scripted engine behind it, and a browser tab as a person uses it."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from playwright.sync_api import Locator, Page, TimeoutError, expect

from app.access.auth import Owners
from app.access.callers import Callers
from app.access.cookie_key import load_secret
from app.access.public_link import Share
from app.access.visitors import Visitors, trusted_networks
from app.model_names import ModelNames
from app.server.listen import bind
from app.server.site import create_app
from app.server.uvicorn_server import Server
from app.services import Services
from model_runtime.interface.chat import TurnTemplate
from sessions.config import SessionConfig
from sessions.manager import SessionManager
from sessions.store.store import Store
from tests.coroutines import run_coroutine
from tests.sessions.byte_template import END, USER, ByteTemplate
from tests.sessions.scripted_engine import ScriptedEngine

BUDGET_BYTES = 64 * 1024 * 1024


def echo(ledger: tuple[int, ...]) -> Sequence[int]:
    """Repeats the message; "long" in it makes the answer a few hundred tokens longer."""
    last_user = max((index for index, token in enumerate(ledger) if token == USER), default=-1)
    asked = bytes(token for token in ledger[last_user + 1 :] if token < 256).decode("utf-8", errors="replace").strip()
    text = f"You said: {asked}"
    if "long" in asked:
        text += "".join(f" word{number}" for number in range(400))
    return (*text.encode(), END)


class Site:
    """A running server. `engine` may be made slower or changed at any time."""

    def __init__(
        self,
        data_dir: Path,
        password: str | None = None,
        headless: bool = False,
        template: TurnTemplate | None = None,
        config: dict[str, Any] | None = None,
        trusted_proxy: str = "",
        require_key: bool = False,
        has_tunnel: bool = False,
        names: ModelNames | None = None,
        allowed_origins: tuple[str, ...] = (),
        root_path: str = "",
        port: int = 0,
        **engine: Any,
    ) -> None:
        self.engine = ScriptedEngine(**{"answer": echo, **engine})
        self.store = Store(data_dir)
        settings = {"device_kv_budget_bytes": BUDGET_BYTES, **(config or {})}
        if headless:  # the API's tests count tokens: nothing is read ahead there
            settings = {"read_ahead": False, "model_titles": False, **settings}
        self.manager = SessionManager(self.store, self.engine, template or ByteTemplate(), SessionConfig(**settings))
        self.manager.start()
        owners = Owners(load_secret(data_dir / "secret"), password, self.store.logins)
        self._listeners = [bind("127.0.0.1", number) for number in (port, 0)[: 1 + has_tunnel]]
        self.url, self.tunnel_url = (f"http://127.0.0.1:{self._listeners[n].getsockname()[1]}" for n in (0, -1))
        visitors = Visitors(
            trusted_networks(trusted_proxy) if trusted_proxy else (),
            self._listeners[-1].getsockname()[1] if has_tunnel else None,
        )
        callers = Callers(self.store.keys, owners, visitors, require_key)
        services = Services(self.manager, owners, Share(), callers, allowed_origins, names or ModelNames())
        ready = threading.Event()
        self._server = Server(app_in_a_loop(services, headless, root_path), 2, ready.set)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": self._listeners})
        self._thread.start()
        assert ready.wait(30)

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        for listener in self._listeners:
            listener.close()
        self.manager.close()
        self.engine.close()
        self.store.close()
        assert not self._thread.is_alive()


def app_in_a_loop(services: Services, headless: bool, root_path: str = "") -> FastAPI:
    """Builds the app inside an event loop: without one Gradio makes its own and never closes them."""

    async def build() -> FastAPI:
        return create_app(services, "127.0.0.1", headless, root_path)

    return run_coroutine(build())


class Tab:
    """What a person does in one tab."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.problems: list[str] = []
        self.requests: list[str] = []
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def open(self, url: str | None = None) -> Tab:
        self.page.goto(url or self.url)
        return self.wait_ready()

    def reload(self) -> Tab:
        self.page.reload()
        return self.wait_ready()

    def wait_ready(self) -> Tab:
        self.page.wait_for_selector("html[data-keepwarm=ready]")
        return self

    def log_in(self, password: str) -> None:
        """Fills in the log-in page, as the person whose conversations this browser keeps, if it keeps any."""
        kept = self.page.get_by_label("Continue with the conversations kept in this browser")
        if kept.count():
            kept.check()
        self.page.get_by_label("Password").fill(password)
        self.page.keyboard.press("Enter")

    def by(self, test_id: str) -> Locator:
        return self.page.get_by_test_id(test_id)

    def start_over(self) -> Tab:
        """An empty conversation, as in a page that has just been loaded. What a test left open is closed."""
        if self.page.url == "about:blank":
            return self.open()
        self.page.evaluate("localStorage.clear(); sessionStorage.clear()")
        try:
            self.by("new").click(timeout=2000)
            expect(self.by("conversation")).to_have_count(1, timeout=2000)
            expect(self.by("welcome")).to_be_visible(timeout=2000)
        except (AssertionError, TimeoutError):
            self.page.goto("about:blank")
            self.open()
        return self

    def write(self, text: str) -> None:
        is_touch = self.page.evaluate("matchMedia('(pointer: coarse)').matches")  # there Enter begins a line
        self.by("composer").fill(text)
        self.page.keyboard.press("Control+Enter" if is_touch else "Enter")

    def say(self, text: str) -> None:
        """Sends a message and waits for the whole answer."""
        before = self.messages.count()
        self.write(text)
        expect(self.messages).to_have_count(before + 2)
        self.wait_idle()

    def wait_idle(self) -> None:
        expect(self.by("send")).to_be_visible()

    def wait_running(self) -> None:
        """The server has the message. One that is still sent can be stopped as well."""
        expect(self.page.locator("#kw")).to_have_class(re.compile(r"\bkw-busy\b"))
        expect(self.by("stop")).to_be_visible()

    def new(self) -> None:
        self.by("new").click()
        expect(self.by("welcome")).to_be_visible()

    def choose(self, title: str) -> None:
        self.by("conversation").filter(has_text=title).locator(".kw-open").click()
        expect(self.by("title")).to_have_text(title)

    @property
    def messages(self) -> Locator:
        return self.page.locator("[data-testid^=message-]")

    def message(self, index: int) -> Locator:
        """The text of a message, without what stands below it. Negative counts from the end."""
        rows = self.messages
        row = rows.nth(index) if index >= 0 else rows.nth(rows.count() + index)
        return row.locator(".md")
