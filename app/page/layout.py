"""The page's channel: the handlers that Gradio calls for it. What a person sees is app/page/first/frame.py's and the
scripts' (app/page/assets): it stands before Gradio's own scripts have run.

Text from people and models reaches the page only as JSON, from which the scripts build nodes with `textContent`
(answers: app/page/markdown). It never goes into a `gr.HTML` template, which Gradio evaluates, nor into a `gr.Chatbot`.
There is no `gr.State` and no unload event: each would keep a connection open for every tab.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from app.http.connection_limits import own_limits
from app.page import asked
from app.page.chat import Chat
from app.page.panels import Panels

if TYPE_CHECKING:
    from app.services import Services

PAGE_LIGHT, PAGE_DARK = "#fbfaf7", "#191715"
THEME = gr.themes.Base(font=("system-ui", "sans-serif"), font_mono=("monospace",)).set(
    body_background_fill=PAGE_LIGHT, body_background_fill_dark=PAGE_DARK
)
DIRECT: dict[str, Any] = {
    "queue": False,
    "show_progress": "hidden",
    "trigger_mode": "multiple",
    "api_visibility": "private",
}


def build_page(services: Services) -> gr.Blocks:
    """Builds Gradio's part of the page. Every handler takes the owner from the request, never from the event."""
    with gr.Blocks(title="Keepwarm", analytics_enabled=False) as page:
        page.max_threads = min(100, own_limits().threads * 2)
        chat = Chat(services.manager)
        _bind_chat(services, chat, _bridge(services, chat))
    page.queue(default_concurrency_limit=None)
    return page


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
        html_template="",
        apply_default_css=False,
        server_functions=[ask],
        js_on_load='connect("act");',  # read by app/page/assets/gradio.js: no string is run as a script
    )


def _bind_chat(services: Services, chat: Chat, bridge: gr.HTML) -> None:
    def act(event: gr.EventData, request: gr.Request) -> dict[str, Any]:
        fields = asked.asked(event._data)
        owner_id = services.owner_of(request)
        if owner_id is None:
            return {"seq": fields.get("seq"), "error": "Please log in again.", "login": True}
        return chat.act(owner_id, fields)

    bridge.act(act, None, bridge, **DIRECT)
