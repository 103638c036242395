"""The page: login, its own files, and Gradio's part mounted below them. Only this module and `ui` import Gradio."""

from __future__ import annotations

import html
from importlib.resources import as_file, files
from pathlib import Path
from string import Template

import gradio as gr
from fastapi import FastAPI, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app.auth import LOGIN_COOKIE, LOGIN_MAX_AGE_S, OWNER_COOKIE, OWNER_MAX_AGE_S, Login
from app.gradio_door import GradioDoor
from app.gradio_events import GradioEvents
from app.guard import ASSETS_PATH, LOGIN_PATH, cookies_of
from app.ui import HEAD, THEME, build_page
from app.wiring import House

LARGEST_UPLOAD = "1b"  # the door lets no upload through; should one get past it, it is refused there


def add_page(app: FastAPI, house: House) -> None:
    """Everything that a browser sees. Comes last: Gradio's door answers every path that is left."""
    _add_login(app, house)
    app.mount(ASSETS_PATH, FreshFiles(directory=assets_directory()))
    page = build_page(house)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        # Gradio writes into the page what this returns: only that somebody may see it, not who it is.
        auth_dependency=lambda request: "you" if house.owner_of(request) is not None else None,
        show_error=False,
        run_history=False,
        ssr_mode=False,
        footer_links=[],
        enable_monitoring=False,
        max_file_size=LARGEST_UPLOAD,
        theme=THEME,
        head=HEAD,
    )
    mounted = app.routes.pop()
    assert isinstance(mounted, Mount)
    app.mount("/", GradioDoor(mounted.app, GradioEvents(page)))


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


def _add_login(app: FastAPI, house: House) -> None:
    page = Template((assets_directory() / "login.html").read_text(encoding="utf-8"))

    def draw(sentence: str, status: int = 200) -> HTMLResponse:
        model = html.escape(house.manager.info.name)
        return HTMLResponse(page.substitute(model=model, sentence=html.escape(sentence)), status)

    @app.get(LOGIN_PATH, response_model=None)
    def show_login(request: Request) -> Response:
        if house.owner_of(request) is not None:
            return RedirectResponse("/", 303)
        return draw("")

    @app.post(LOGIN_PATH, response_model=None)
    def log_in(request: Request, password: str = Form(default="")) -> Response:
        outcome = house.owners.log_in(password, cookies_of(request.headers))
        if outcome is None:
            return draw("This is not the password.", 401)
        if not isinstance(outcome, Login):
            return draw(f"Too many wrong passwords. Try again in {max(1, round(outcome))} s.", 429)
        response = RedirectResponse("/", 303)
        secure = request.headers.get("x-forwarded-proto", request.url.scheme) == "https"
        for name, value, age in (
            (OWNER_COOKIE, outcome.owner_cookie, OWNER_MAX_AGE_S),
            (LOGIN_COOKIE, outcome.login_cookie, LOGIN_MAX_AGE_S),
        ):
            response.set_cookie(name, value, max_age=age, httponly=True, samesite="lax", secure=secure)
        return response

    @app.post("/logout", response_model=None)
    def log_out() -> Response:
        response = RedirectResponse(LOGIN_PATH, 303)
        response.delete_cookie(LOGIN_COOKIE)  # the owner stays: whoever logs in here again finds the conversations
        return response
