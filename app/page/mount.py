"""Mounts the page: login, its own files, and Gradio below them. Only this module and `layout` import Gradio."""

from __future__ import annotations

import gradio as gr
from fastapi import FastAPI
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Mount

from app.access.login import add_login
from app.page.first.files import page_files
from app.page.first.frame import frame
from app.page.gradio_door.door import GradioDoor
from app.page.gradio_door.page_events import GradioEvents
from app.page.layout import THEME, build_page
from app.paths import ASSETS_PATH
from app.services import Services

LARGEST_UPLOAD = "1b"  # the door lets no upload through; this limit refuses any that should get past it


def add_page(app: FastAPI, services: Services) -> None:
    """Adds everything that a browser sees. Call it last: Gradio's door answers every remaining path."""
    add_login(app, services.owners, services.callers.visitors, services.manager.info.name)
    own = page_files()
    app.mount(ASSETS_PATH, own)
    page = build_page(services)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        # Gradio writes what this returns into the page: it says only that the visitor may see it, not who it is.
        auth_dependency=lambda request: "you" if services.owner_of(request) is not None else None,
        show_error=False,
        run_history=False,
        ssr_mode=False,
        footer_links=[],
        enable_monitoring=False,
        max_file_size=LARGEST_UPLOAD,
        theme=THEME,
    )
    mounted = app.routes.pop()
    assert isinstance(mounted, Mount)
    door = GradioDoor(mounted.app, GradioEvents(page), frame(services, own))
    # Compressed quickly: this happens while other requests wait. Nothing here repeats what a stranger sends beside a
    # secret, which compression could give away.
    app.mount("/", GZipMiddleware(door, minimum_size=1000, compresslevel=3))
