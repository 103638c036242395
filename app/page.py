"""The page: login, its own files, and Gradio's part mounted below them. Only this module and `ui` import Gradio."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

import gradio as gr
from fastapi import FastAPI
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app.guard import ASSETS_PATH
from app.login import add_login
from app.ui import HEAD, THEME, build_page
from app.wiring import House

LARGEST_UPLOAD = "1kb"  # the page uploads nothing, but Gradio's route is there


def add_page(app: FastAPI, house: House) -> None:
    """Everything that a browser sees. Comes last: Gradio takes every path that is left."""
    add_login(app, house)
    app.mount(ASSETS_PATH, FreshFiles(directory=assets_directory()))
    gr.mount_gradio_app(
        app,
        build_page(house),
        path="/",
        auth_dependency=house.owner_of,
        show_error=False,
        run_history=False,
        ssr_mode=False,
        footer_links=[],
        enable_monitoring=False,
        max_file_size=LARGEST_UPLOAD,
        theme=THEME,
        head=HEAD,
    )


class FreshFiles(StaticFiles):
    """Static files a browser asks about every time: after an update nobody runs yesterday's script."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response


def assets_directory() -> Path:
    """Where the scripts and style sheets lie."""
    with as_file(files("app") / "assets") as directory:
        return directory
