"""`/api/pull`, `/api/push`, `/api/copy`, `/api/delete`, `/api/create` and `/api/blobs`: what a server of one model says
to those who manage models."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.api.answering import Answering
from app.api.json_route import json_route
from app.api.ollama.requests import CopyRequest, ManageRequest
from app.api.ollama.translation import plain_name
from app.http.bodies import Bodies
from app.problems import Problem

if TYPE_CHECKING:
    from app.services import Services

DONE = {"status": "success"}


def management_routers(services: Services, bodies: Bodies, _: Answering) -> tuple[APIRouter, ...]:
    """One for each shape of body, and one without."""
    managed, copies = (
        APIRouter(route_class=json_route(services, bodies, shape, takes_forms=True))
        for shape in (ManageRequest, CopyRequest)
    )
    blobs, own = APIRouter(), services.manager.info.name
    names = (own, *services.names.aliases)

    def is_served(asked: str | None) -> bool:
        return asked is not None and services.names.serves(plain_name(asked, names), own)

    @managed.post("/pull", summary="Success for the served model, which is there; others are refused")
    def pull(body: ManageRequest) -> Response:
        asked = body.model or body.name
        if not asked:
            raise Problem(400, "model is missing.", "invalid_value", "model")
        if not is_served(asked):
            how = f"Restart it with `keepwarm serve --model {asked[:200]}`, which downloads what it lacks."
            raise _refused(f"This server runs {own} and fetches no other model while it runs. {how}", "model")
        if body.stream is False:
            return JSONResponse(DONE)
        lines = ({"status": "pulling manifest"}, DONE)
        return Response("".join(f"{json.dumps(line)}\n" for line in lines), media_type="application/x-ndjson")

    @copies.post("/copy", summary="Success where both name the served model; others are refused")
    def copy(body: CopyRequest) -> Response:
        if is_served(body.source) and is_served(body.destination):
            return Response()
        how = f"Restart it with `keepwarm serve --alias {(body.destination or 'NAME')[:200]}`."
        raise _refused(f"This server gives its model, {own}, no other name while it runs. {how}", "destination")

    @managed.delete("/delete", summary="Refused: the model is being served")
    def delete(body: ManageRequest) -> Response:
        how = "Stop it and run `keepwarm cache clear --models` to delete what it downloaded."
        raise _refused(f"This server deletes no models while it runs: it answers with {own}. {how}", "model")

    @managed.post("/push", summary="Refused: nothing is uploaded from here")
    def push(body: ManageRequest) -> Response:
        raise _refused("This server uploads no models.", "model")

    @managed.post("/create", summary="Refused: models are not made here")
    def create(body: ManageRequest) -> Response:
        how = "Send its system prompt and its options with each request, or restart with `keepwarm serve --model FILE`."
        raise _refused(f"This server makes no models from others or from files: it runs {own}. {how}", "model")

    @blobs.api_route("/blobs/{digest}", methods=["HEAD", "POST"], summary="Refused: no files are kept here")
    def blob(digest: str, request: Request) -> Any:
        services.callers.owner_of(request)
        raise Problem(
            404, "This server keeps no files of models that are sent to it.", "unsupported_parameter", "digest"
        )

    return managed, copies, blobs


def _refused(sentence: str, param: str) -> Problem:
    return Problem(400, sentence, "unsupported_parameter", param)
