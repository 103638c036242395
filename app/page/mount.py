"""Mounts the page: log-in, its own files, the page, and Gradio behind it. Only this module and `channel` import
Gradio."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Mount

from app.access.login import add_login
from app.http.bodies import Bodies
from app.page.channel import build_channel
from app.page.door import Door
from app.page.first.files import page_files
from app.page.first.frame import first_page
from app.page.gradio_import import gradio as gr
from app.paths import ASSETS_PATH
from app.services import Services


def add_page(app: FastAPI, services: Services, bodies: Bodies) -> None:
    """Adds everything that a browser sees. Call it last: the door answers every remaining path."""
    add_login(app, services.owners, services.callers.visitors, services.manager.info.name)
    own = page_files()
    app.mount(ASSETS_PATH, own)
    channel = build_channel(services)
    gr.mount_gradio_app(
        app, channel, path="/", show_error=False, run_history=False, ssr_mode=False, enable_monitoring=False
    )
    mounted = app.routes.pop()
    assert isinstance(mounted, Mount)
    ((component_id, function),) = (
        (number, function.__name__)
        for number, block in channel.blocks.items()
        for function in getattr(block, "server_fns", ())
    )
    door = Door(first_page(services, own), mounted.app, component_id, function, bodies)
    # Compressed quickly: this happens while other requests wait. Nothing here repeats what a stranger sends beside a
    # secret, which compression could give away.
    app.mount("/", GZipMiddleware(door, minimum_size=1000, compresslevel=3))
