"""The web server: health, login, the page's own files, and Gradio's page mounted below them."""

from __future__ import annotations

import html
from importlib.resources import as_file, files
from pathlib import Path
from string import Template
from typing import Any

import gradio as gr
from fastapi import FastAPI, Form, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app.auth import LOGIN_COOKIE, LOGIN_MAX_AGE_S, OWNER_COOKIE, OWNER_MAX_AGE_S, Login
from app.guard import ASSETS_PATH, HEALTH_PATH, LOGIN_PATH, Guard, cookies_of
from app.ui import HEAD, THEME, build_page
from app.wiring import House

LARGEST_UPLOAD = "1kb"  # the page uploads nothing, but Gradio's route is there


def create_app(house: House, bind_host: str) -> FastAPI:
    """The whole site. `house` holds the long-lived objects and outlives the app."""
    app = FastAPI(title="Keepwarm", docs_url=None, redoc_url=None, openapi_url=None)
    # Gradio would otherwise reflect any foreign Origin, credentials allowed, when served under a public name.
    app.add_middleware(CORSMiddleware, allow_origins=[])
    app.add_middleware(Guard, owners=house.owners, bind_host=bind_host, share_host=house.share.host)
    _add_health(app, house)
    _add_login(app, house)
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
    return app


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


def _add_health(app: FastAPI, house: House) -> None:
    @app.get(HEALTH_PATH)
    def health(request: Request) -> JSONResponse:
        report: dict[str, Any] = {"live": True, "ready": True}
        owner_id = house.owner_of(request)
        if owner_id is not None:
            info = house.manager.info
            totals = house.manager.memory(owner_id)
            report |= {
                "model": info.name,
                "quantization": info.quantization,
                "kernel": info.kernel,
                "device": info.device,
                "kv": {
                    "used": totals.device_used_bytes,
                    "reserved": totals.device_reserved_bytes,
                    "budget": totals.device_budget_bytes,
                },
            }
        return JSONResponse(report)


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
