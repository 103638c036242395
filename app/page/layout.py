"""The page's layout and event bindings. Gradio provides the boxes and the channel; app/page/assets/*.js draws in them.

Text from people and models reaches the page only as JSON, from which the scripts build nodes with `textContent`
(answers: app/page/markdown). It never goes into a `gr.HTML` template, which Gradio evaluates, nor into a `gr.Chatbot`.
There is no `gr.State` and no unload event: each would keep a connection open for every tab.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from app.http.connection_limits import own_limits
from app.page import asked, memory_panel, settings
from app.page.chat import Chat
from app.page.panels import Panels
from app.page.welcome import welcome

if TYPE_CHECKING:
    from app.services import Services

SYSTEM_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO_FONT = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")
PAGE_LIGHT, PAGE_DARK = "#fbfaf7", "#191715"
THEME = gr.themes.Base(font=SYSTEM_FONT, font_mono=MONO_FONT).set(
    body_background_fill=PAGE_LIGHT, body_background_fill_dark=PAGE_DARK
)
HEAD = """
<meta name="color-scheme" content="light dark">
<meta http-equiv="x-dns-prefetch-control" content="off">
<link rel="stylesheet" href="keepwarm/base.css">
<link rel="stylesheet" href="keepwarm/layout.css">
<link rel="stylesheet" href="keepwarm/thread.css">
<link rel="stylesheet" href="keepwarm/prose.css">
<link rel="stylesheet" href="keepwarm/composer.css">
<link rel="stylesheet" href="keepwarm/panels.css">
<link rel="stylesheet" href="keepwarm/memory.css">
<link rel="stylesheet" href="keepwarm/form.css">
<link rel="stylesheet" href="keepwarm/media.css">
"""
DIRECT: dict[str, Any] = {
    "queue": False,
    "show_progress": "hidden",
    "trigger_mode": "multiple",
    "api_visibility": "private",
}


def build_page(services: Services) -> gr.Blocks:
    """Builds the page. Every handler takes the owner from the request, never from the event."""
    with gr.Blocks(title="Keepwarm", analytics_enabled=False, fill_width=True) as page:
        page.max_threads = min(100, own_limits().threads * 2)
        with gr.Row(elem_id="kw"):
            with gr.Column(elem_id="kw-left"):
                _panel("conversations", {"needs_login": services.owners.needs_login})
            with gr.Column(elem_id="kw-centre"):
                _panel("header", _model_facts(services))
                with gr.Column(elem_id="kw-scroll"):
                    _panel("welcome", welcome(services.manager.info))
                    _panel("thread", {})
                _panel("composer", {"reads_ahead": services.manager.reads_ahead})
            with gr.Column(elem_id="kw-right"):
                _panel("memory", {"words": memory_panel.words(services.manager.info.device)})
            with gr.Column(elem_id="kw-settings"):
                _panel("settings", settings.facts(), "kw-settings-panel")
        chat = Chat(services.manager)
        _bind_chat(services, chat, _bridge(services, chat))
    page.queue(default_concurrency_limit=None)
    return page


def _panel(name: str, facts: dict[str, Any], elem_id: str | None = None) -> gr.HTML:
    """An empty box that app/page/assets/<name>.js fills. `facts` are known when the server starts and never include
    text from people or models."""
    return gr.HTML(
        facts,
        elem_id=elem_id or f"kw-{name}",
        html_template="",
        apply_default_css=False,
        js_on_load=f'mount("{name}");',  # read by app/page/assets/gradio.js: no string is run as a script
    )


def _bridge(services: Services, chat: Chat) -> gr.HTML:
    panels = Panels(services.manager, services.share, services.process)

    def ask(query: object, request: gr.Request) -> dict[str, Any]:
        owner_id = services.owner_of(request)
        if owner_id is None:
            return {"error": "Please log in again.", "login": True}
        fields = asked.asked(query)
        if fields.get("ask") == "act":  # once Gradio sends no more events: app/page/assets/bridge.js
            return chat.act(owner_id, fields)
        return panels.ask(owner_id, fields)

    # `gr.HTML` finds the names of its events by looking for quoted words in this script.
    return gr.HTML(
        None,
        elem_id="kw-bridge",
        html_template="",
        apply_default_css=False,
        server_functions=[ask],
        js_on_load='mount("bridge", "act");',
    )


def _bind_chat(services: Services, chat: Chat, bridge: gr.HTML) -> None:
    def act(event: gr.EventData, request: gr.Request) -> dict[str, Any]:
        fields = asked.asked(event._data)
        owner_id = services.owner_of(request)
        if owner_id is None:
            return {"seq": fields.get("seq"), "error": "Please log in again.", "login": True}
        return chat.act(owner_id, fields)

    bridge.act(act, None, bridge, **DIRECT)


def _model_facts(services: Services) -> dict[str, Any]:
    info = services.manager.info
    return {
        "model": info.name,
        "quantization": info.quantization,
        "kernel": info.kernel,
        "device": info.device,
        "notes": list(info.notes),
    }
