"""`GET /health` for probes and people, `GET /metrics` for Prometheus. Unknown callers learn only that it is alive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from app.metrics import Metrics
from app.paths import HEALTH_PATH, METRICS_PATH
from app.problems import Problem
from sessions.errors import SessionError

if TYPE_CHECKING:
    from app.services import Services
    from sessions.types import MemoryView


PROBES_AT_ONCE = 4


def add_health(app: FastAPI, services: Services, metrics: Metrics) -> None:
    """Adds both routes. They have threads of their own, and answer even when other requests take all the rest."""
    threads = anyio.CapacityLimiter(PROBES_AT_ONCE)

    @app.get(HEALTH_PATH)
    async def health(request: Request) -> JSONResponse:
        return await anyio.to_thread.run_sync(report_health, request, limiter=threads)

    @app.get(METRICS_PATH)
    async def read_metrics(request: Request) -> Response:
        return await anyio.to_thread.run_sync(report_metrics, request, limiter=threads)

    def report_health(request: Request) -> JSONResponse:
        is_well, storage = services.manager.is_well, services.manager.storage
        ready = is_well and storage.can_store and not services.manager.is_draining
        report: dict[str, Any] = {"live": True, "ready": ready}
        if _is_known(services, request):
            info = services.manager.info
            view = _memory(services)
            running, waiting = services.manager.open_answers()
            report |= {
                "engine": "running" if is_well else "not answering",
                "servers": [
                    {"address": server.address, "well": not server.trouble, "trouble": server.trouble}
                    for server in services.manager.servers
                ],
                "degraded": [*storage.reasons, *(one.trouble for one in services.manager.servers if one.trouble)],
                "model": info.name,
                "quantization": info.quantization,
                "kernel": info.kernel,
                "device": info.device,
                "context_limit_tokens": info.context_limit_tokens,
                "notes": list(info.notes),
                "running": running,
                "waiting": waiting,
            }
            if view is not None:
                tiers = _tiers(view)
                report |= {"kv": tiers["device"], "tiers": tiers}
        return JSONResponse(report, 200 if ready else 503)

    def report_metrics(request: Request) -> Response:
        try:
            services.callers.owner_of(request)
        except Problem as problem:
            return problem.response()
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _memory(services: Services) -> MemoryView | None:
    """The memory of all tiers, None while the database cannot be read: the rest of the report is sent all the same."""
    try:
        return services.manager.memory_view("")
    except SessionError:
        return None


def _tiers(view: MemoryView) -> dict[str, dict[str, int]]:
    """Bytes by tier; a tier with a budget of 0 is off."""
    return {
        "device": {
            "used": view.device_used_bytes,
            "reserved": view.device_reserved_bytes,
            "budget": view.device_budget_bytes,
        },
        "host": {
            "used": view.host_used_bytes,
            "reserved": view.host_reserved_bytes,
            "budget": view.host_budget_bytes,
        },
        "disk": {
            "used": view.disk_used_bytes,
            "reserved": 0,
            "budget": view.disk_budget_bytes,
            "other_models": view.disk_other_bytes,
        },
    }


def _is_known(services: Services, request: Request) -> bool:
    """Whether the request comes from a logged-in browser, from the page of a server without a password, or from a
    program that the API would answer."""
    if services.owners.needs_login and services.owner_of(request) is not None:
        return True
    is_own_page = request.headers.get("sec-fetch-site") == "same-origin"  # set by the browser: no script can set it
    if is_own_page and not services.owners.needs_login and services.callers.visitors.of(request.scope).is_local:
        return True
    try:
        services.callers.owner_of(request)
    except (Problem, SessionError):  # an unknown caller, or one that cannot be checked now
        return False
    return True
