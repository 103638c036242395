"""The frame of the page as HTML: its parts with what is known before any script has run, the empty state included.

A person sees it while scripts are loaded; each script then fills its part. Nothing from people or models is in it: the
open conversation is named by the address's part behind #, which no browser sends.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from string import Template
from typing import Any

from app.page import memory_panel, settings
from app.page.first.files import PAGE_STYLES, PageFiles
from app.page.first.welcome import welcome
from app.paths import ASSETS_PATH
from app.services import Services


@dataclass(frozen=True, slots=True)
class Frame:
    """What is put into Gradio's index page: into its head, and at the beginning of its body."""

    head: str
    template: Template
    values: Mapping[str, str]

    def body(self, nonce: str) -> str:
        """The frame, with `nonce` on its scripts."""
        return self.template.substitute(self.values, nonce=nonce)


def frame(services: Services, own: PageFiles) -> Frame:
    """The frame of the page of this server."""
    folder = f"{ASSETS_PATH.lstrip('/')}/{own.version}"  # relative: the page may be below a proxy's path
    preloads = "".join(f'<link rel="modulepreload" href="{folder}/{name}">' for name in own.modules)
    head = (
        '<meta name="color-scheme" content="light dark">'
        '<meta http-equiv="x-dns-prefetch-control" content="off">'
        f'<link rel="stylesheet" href="{folder}/{PAGE_STYLES}">'
        f'<link rel="icon" href="{folder}/icon-32.png" sizes="32x32" type="image/png">'
        f'<link rel="icon" href="{folder}/icon.svg" type="image/svg+xml">'
        f'<link rel="apple-touch-icon" href="{folder}/icon-180.png">'
    )
    info = services.manager.info
    empty = welcome(info)
    examples = "".join(
        f'<button type="button" class="kw-button kw-example" data-testid="example">{escape(text)}</button>'
        for text in empty.examples
    )
    values = {
        "first": own.text("first.js"),
        "gradio": own.text("gradio.js"),
        "facts": _as_data(_facts(services)),
        "model": escape(info.name),
        "running": escape(_running(services)),
        "good_for": escape(empty.good_for),
        "panel": escape(empty.panel),
        "examples": examples,
        "folder": folder,
        "preloads": preloads,
    }
    return Frame(head, Template(own.text("frame.html")), values)


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
