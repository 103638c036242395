"""`GET /v1/models`: the one served model, under each of its names, with the fields of OpenAI and Anthropic."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request

from app.api.responses import REFUSALS, Model, ModelList
from app.problems import Problem

if TYPE_CHECKING:
    from app.services import Services


def models_router(services: Services) -> APIRouter:
    router, started = APIRouter(), int(time.time())
    refusals: dict[int | str, dict[str, Any]] = {status: REFUSALS[status] for status in (401, 403, 404)}

    def described(name: str) -> dict[str, Any]:
        info = services.manager.info
        return {
            "id": name,
            "object": "model",
            "created": started,
            "owned_by": "keepwarm",
            "type": "model",
            "display_name": name,
            "created_at": datetime.fromtimestamp(started, UTC).isoformat().replace("+00:00", "Z"),
            "context_window": info.context_limit_tokens,
        }

    @router.get("/models", summary="List the served model", response_model=ModelList, responses=refusals)
    def list_models(request: Request) -> dict[str, Any]:
        services.callers.owner_of(request)
        names = dict.fromkeys((services.manager.info.name, *services.names.aliases))
        ends = {"first_id": next(iter(names)), "last_id": next(reversed(names)), "has_more": False}
        return {"object": "list", "data": [described(name) for name in names], **ends}

    @router.get("/models/{model:path}", summary="Describe a model", response_model=Model, responses=refusals)
    def describe_model(model: str, request: Request) -> dict[str, Any]:
        services.callers.owner_of(request)
        if not services.names.serves(model, services.manager.info.name):
            raise Problem(404, f"The model {model[:200]!r} is not served here.", "model_not_found", "model")
        return described(model)

    return router
