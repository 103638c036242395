"""The page's channel: the one function that Gradio runs for it. The page itself is in app/page/first and assets/.

Text from people and models reaches the page only as JSON, from which the scripts build nodes with `textContent`
(answers: app/page/markdown).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse

from app.http.connection_limits import own_limits
from app.page.chat import Chat
from app.page.gradio_import import gradio as gr
from app.page.panels import Panels

if TYPE_CHECKING:
    from app.services import Services


def build_channel(services: Services) -> gr.Blocks:
    """Gradio's part of the page: a component that is never shown, and its server function `ask`. The owner is taken
    from the request, never from the question."""
    chat = Chat(services.manager)
    panels = Panels(services.manager, services.share, services.process)

    def ask(question: dict[str, Any], request: gr.Request) -> JSONResponse:
        # As a response, it is written here, in a thread: Gradio would copy it node by node in the event loop.
        owner_id = services.owner_of(request)
        if owner_id is None:
            return JSONResponse({"error": "Please log in again.", "login": True})
        asked = chat.act if question.get("ask") == "act" else panels.ask
        return JSONResponse(asked(owner_id, question))

    with gr.Blocks(analytics_enabled=False) as channel:
        channel.max_threads = min(100, own_limits().threads * 2)
        gr.HTML(server_functions=[ask])
    return channel
