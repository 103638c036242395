"""The page's layout and event bindings. Gradio provides the boxes and the form; app/page/assets/*.js draws the rest.

Text from people and models reaches the page only as JSON, from which the scripts build nodes with `textContent`
(answers: app/page/markdown). It never goes into a `gr.HTML` template, which Gradio evaluates, nor into a `gr.Chatbot`.
There is no `gr.State` and no unload event: each would keep a connection open for every tab.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import gradio as gr

from app.http.connection_limits import own_limits
from app.page import asked, memory_panel, settings
from app.page.chat import Chat
from app.page.panels import Panels
from app.page.welcome import welcome
from app.problems import sentence

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
<link rel="stylesheet" href="/keepwarm/base.css">
<link rel="stylesheet" href="/keepwarm/layout.css">
<link rel="stylesheet" href="/keepwarm/thread.css">
<link rel="stylesheet" href="/keepwarm/prose.css">
<link rel="stylesheet" href="/keepwarm/composer.css">
<link rel="stylesheet" href="/keepwarm/panels.css">
<link rel="stylesheet" href="/keepwarm/memory.css">
<link rel="stylesheet" href="/keepwarm/form.css">
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
        conversation_id = gr.Textbox(visible="hidden", elem_id="kw-conversation-id")
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
                form = _settings_form()
        bridge = _bridge(services)
        _bind_chat(services, bridge, [bridge, conversation_id])
        _bind_settings(services, bridge, conversation_id, form)
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


def _bridge(services: Services) -> gr.HTML:
    panels = Panels(services.manager, services.share, services.process)

    def ask(query: object, request: gr.Request) -> dict[str, Any]:
        owner_id = services.owner_of(request)
        if owner_id is None:
            return {"error": "Please log in again.", "login": True}
        return panels.ask(owner_id, asked.asked(query))

    # `gr.HTML` finds the names of its events by looking for quoted words in this script.
    return gr.HTML(
        None,
        elem_id="kw-bridge",
        html_template="",
        apply_default_css=False,
        server_functions=[ask],
        js_on_load='mount("bridge", "act", "settings");',
    )


def _bind_chat(services: Services, bridge: gr.HTML, outputs: list[Any]) -> None:
    chat = Chat(services.manager)

    def act(event: gr.EventData, request: gr.Request) -> tuple[Any, Any]:
        fields = asked.asked(event._data)
        owner_id = services.owner_of(request)
        if owner_id is None:
            return {"seq": fields.get("seq"), "error": "Please log in again.", "login": True}, gr.skip()
        reply = chat.act(owner_id, fields)
        return reply, reply["conversation_id"] if "messages" in reply else gr.skip()

    bridge.act(act, None, outputs, **DIRECT)


def _settings_form() -> dict[str, Any]:
    _panel("settings", {}, "kw-settings-panel")
    fields: dict[str, Any] = {}
    for field in settings.FIELDS:
        look = {"label": field.label, "info": field.info, "elem_id": f"kw-set-{field.name.replace('_', '-')}"}
        if field.kind == "lines":
            fields[field.name] = gr.Textbox(lines=2, max_lines=8, **look)
        else:
            fields[field.name] = gr.Number(
                precision=0 if field.kind == "whole" else None, step=1 if field.kind == "whole" else 0.05, **look
            )
    fields["save"] = gr.Button("Save", elem_id="kw-settings-save", variant="primary")
    fields["note"] = gr.Textbox(show_label=False, interactive=False, container=False, elem_id="kw-settings-note")
    return fields


def _bind_settings(services: Services, bridge: gr.HTML, conversation_id: gr.Textbox, form: dict[str, Any]) -> None:
    fields = [form[field.name] for field in settings.FIELDS]

    def show(event: gr.EventData, request: gr.Request) -> list[Any]:
        # The sheet opens only when this reply arrives, so that no one edits the values of another conversation.
        reply = {"seq": "settings"}
        try:
            where = asked.conversation_id(asked.asked(event._data))
            view = services.manager.view(services.required_owner_of(request), where)
        except Exception as error:
            return [*(gr.skip() for _ in fields), sentence(error, "settings"), reply | {"at": time.time()}]
        return [*settings.to_form(view.settings), "", reply | {"at": time.time()}]

    def save(request: gr.Request, conversation: str | None, *values: Any) -> str:
        try:
            where = asked.conversation_id({"conversation_id": conversation or ""})
            services.manager.update_settings(services.required_owner_of(request), where, settings.from_form(values))
        except Exception as error:
            return sentence(error, "save_settings")
        return "Saved. The next answer uses these settings."

    bridge.settings(show, None, [*fields, form["note"], bridge], **DIRECT)
    form["save"].click(save, [conversation_id, *fields], form["note"], **DIRECT)


def _model_facts(services: Services) -> dict[str, Any]:
    info = services.manager.info
    return {
        "model": info.name,
        "quantization": info.quantization,
        "kernel": info.kernel,
        "device": info.device,
        "notes": list(info.notes),
    }
