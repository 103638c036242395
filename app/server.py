"""The web server: health and the API, and the page unless it runs headless."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.middleware.cors import CORSMiddleware

from app.api.service import create_api
from app.guard import API_PATH, HEALTH_PATH, Guard
from app.wiring import House


def create_app(house: House, bind_host: str, headless: bool = False) -> FastAPI:
    """The whole site. `house` holds the long-lived objects and outlives the app."""
    app = FastAPI(title="Keepwarm", docs_url=None, redoc_url=None, openapi_url=None)
    # Gradio would otherwise reflect any foreign Origin, credentials allowed, when served under a public name.
    app.add_middleware(CORSMiddleware, allow_origins=[])
    app.add_middleware(Guard, owners=house.owners, bind_host=bind_host, share_host=house.share.host)
    _add_health(app, house)
    app.mount(API_PATH, create_api(house))
    if not headless:
        from app.page import add_page  # Gradio is imported here: it costs seconds

        add_page(app, house)
    return app


def _add_health(app: FastAPI, house: House) -> None:
    @app.get(HEALTH_PATH)
    def health(request: Request) -> JSONResponse:
        is_well = house.manager.is_well
        ready = is_well and not house.manager.is_draining
        report: dict[str, Any] = {"live": True, "ready": ready}
        owner_id = house.owner_of(request)
        if owner_id is not None:
            info = house.manager.info
            totals = house.manager.memory(owner_id)
            report |= {
                "engine": "running" if is_well else "not answering",
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
        return JSONResponse(report, 200 if ready else 503)
