"""The page as HTML: its parts with what is known before any script has run, the empty state included.

A person sees it while scripts are loaded; each script then fills its part. Nothing that people or models wrote is in
it: the open conversation is named by the address's part behind #, which no browser sends.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from string import Template
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse

from app.http.response_headers import page_policy
from app.page import memory_panel, settings
from app.page.first.files import PageFiles
from app.page.first.welcome import welcome
from app.paths import ASSETS_PATH
from app.services import Services
from sessions.store.tables.logins import hash_of

MARK = "{person}"  # before any name that comes from outside


@dataclass(frozen=True, slots=True)
class FirstPage:
    """The page of a server, and the policy that it runs under. It is the same for every visitor but for `owner_of`'s
    answer: a mark of that person, which tells their drafts in this browser from another person's."""

    html: str  # with `MARK` where that stands
    policy: str
    owner_of: Callable[[Request], str | None]

    def response(self, request: Request) -> HTMLResponse:
        """A response of its own for each request: what compresses it changes its headers."""
        html = self.html.replace(MARK, hash_of(self.owner_of(request) or "")[:16], 1)
        return HTMLResponse(html, headers={"Content-Security-Policy": self.policy, "Cache-Control": "no-store"})


def first_page(services: Services, own: PageFiles) -> FirstPage:
    """The page of this server."""
    folder = f"{ASSETS_PATH.lstrip('/')}/{own.version}"  # relative: the page may be below a proxy's path
    info = services.manager.info
    empty = welcome(info)
    examples = "".join(
        f'<button type="button" class="kw-button kw-example" data-testid="example">{escape(text)}</button>'
        for text in empty.examples
    )
    script = own.text("first.js")
    html = Template(own.text("frame.html")).substitute(
        person=MARK,
        first=script,
        facts=_as_data(_facts(services)),
        model=escape(info.name),
        running=escape(_running(services)),
        good_for=escape(empty.good_for),
        panel=escape(empty.panel),
        examples=examples,
        folder=folder,
        preloads="".join(f'<link rel="modulepreload" href="{folder}/{name}">' for name in own.modules),
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return FirstPage(html, page_policy(digest), services.owner_of)


def _facts(services: Services) -> dict[str, Any]:
    """What each script gets, by its part's name."""
    info = services.manager.info
    return {
        "conversations": {"needs_login": services.owners.needs_login},
        "header": {"running": _running(services), "device": info.device, "notes": list(info.notes)},
        "composer": {"reads_ahead": services.manager.reads_ahead},
        "memory": {"words": memory_panel.words(info.device)},
        "settings": settings.facts(),
    }


def _running(services: Services) -> str:
    info = services.manager.info
    return " · ".join(part for part in (info.name, info.quantization, info.kernel) if part)


def _as_data(facts: Mapping[str, Any]) -> str:
    """JSON that cannot end the script element that it stands in."""
    return json.dumps(facts, ensure_ascii=False).replace("<", "\\u003c")
