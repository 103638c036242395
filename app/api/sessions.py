"""`/v1/sessions`: what the memory panel shows and does, as JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.api.responses import REFUSALS, Deleted, Session, SessionList
from app.problems import Problem
from sessions.errors import ConversationNotFound
from sessions.types import MemoryRow

if TYPE_CHECKING:
    from app.services import Services

VERIFY_WAIT_S = 20.0
ACCEPTED: dict[int | str, dict[str, Any]] = {202: {"model": Session, "description": "Started; check again later."}}


def sessions_router(services: Services) -> APIRouter:
    router, manager = APIRouter(responses=REFUSALS), services.manager

    def found(owner_id: str, session_id: str) -> dict[str, Any]:
        return session(manager.memory_row(owner_id, session_id))

    def with_branch(owner_id: str, row: MemoryRow) -> MemoryRow | None:
        try:
            return manager.memory_row(owner_id, row.conversation_id)
        except ConversationNotFound:  # deleted a moment ago
            return None

    @router.get("/sessions", summary="List your conversations, newest first", response_model=SessionList)
    def list_sessions(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        after: Annotated[str | None, Query(max_length=64, description="The last id of the previous page.")] = None,
    ) -> dict[str, Any]:
        owner_id = services.callers.owner_of(request)
        rows = manager.memory_view(owner_id).rows
        start = next((n + 1 for n, row in enumerate(rows) if row.conversation_id == after), 0) if after else 0
        page = rows[start : start + limit]
        data = [session(one) for row in page if (one := with_branch(owner_id, row)) is not None]
        return {"object": "list", "data": data, "has_more": start + limit < len(rows)}

    @router.get("/sessions/{session_id}", summary="Describe a conversation's memory", response_model=Session)
    def describe(session_id: str, request: Request) -> dict[str, Any]:
        return found(services.callers.owner_of(request), session_id)

    @router.delete("/sessions/{session_id}", summary="Delete a conversation and its memory", response_model=Deleted)
    def delete(session_id: str, request: Request) -> dict[str, Any]:
        manager.delete(services.callers.owner_of(request), session_id)
        return {"id": session_id, "object": "session.deleted", "deleted": True}

    def act(name: str, summary: str, action: Callable[[str, str], object]) -> None:
        @router.post(f"/sessions/{{session_id}}/{name}", summary=summary, response_model=Session, name=name)
        def do(session_id: str, request: Request) -> dict[str, Any]:
            owner_id = services.callers.owner_of(request)
            action(owner_id, session_id)
            return found(owner_id, session_id)

    act("pin", "Keep it on the device, across restarts", manager.pin)
    act("unpin", "Let it be evicted again", manager.unpin)
    act("drop", "Free its memory and delete its saved copies", manager.drop_kv)

    @router.post("/sessions/{session_id}/park", summary="Move its memory off the device", response_model=Session)
    def park(session_id: str, request: Request, tier: Literal["host", "disk"] = "disk") -> dict[str, Any]:
        owner_id = services.callers.owner_of(request)
        memory = manager.memory_view(owner_id)
        if memory.keeps_kv and not (memory.host_budget_bytes if tier == "host" else memory.disk_budget_bytes):
            raise Problem(400, f"The {tier} tier is off: start the server with --{tier}-kv-budget.", "tier_off", "tier")
        manager.park(owner_id, session_id, tier)
        return found(owner_id, session_id)

    @router.post(
        "/sessions/{session_id}/warm",
        summary="Start to restore its memory to the device",
        response_model=Session,
        responses=ACCEPTED,
    )
    def warm(session_id: str, request: Request) -> Response:
        owner_id = services.callers.owner_of(request)
        begun = manager.warm(owner_id, session_id)
        return JSONResponse(found(owner_id, session_id), 202 if begun else 200)

    @router.post(
        "/sessions/{session_id}/verify",
        summary="Compare its memory with a fresh read; memory that disagrees is dropped",
        response_model=Session,
        responses=ACCEPTED,
    )
    def verify(session_id: str, request: Request) -> Response:
        owner_id = services.callers.owner_of(request)
        done = manager.verify(owner_id, session_id).wait(VERIFY_WAIT_S) is not None
        return JSONResponse(found(owner_id, session_id), 200 if done else 202)

    return router


def session(row: MemoryRow) -> dict[str, Any]:
    """A row of the memory panel as JSON, with sizes in bytes."""
    check, branch = row.check, row.branch
    assert branch is not None
    return {
        "id": row.conversation_id,
        "object": "session",
        "title": row.title,
        "tier": row.tier.value,
        "tokens": row.ledger_tokens,
        "last_used_at": row.last_used_at,
        "is_running": row.is_running,
        "is_pinned": row.is_pinned,
        "predicted_ttft_ms": round(row.next_ttft_s * 1000, 1),
        "cold_ttft_ms": round(row.cold_ttft_s * 1000, 1),
        "device": _held(row.kv_tokens, row.used_bytes, branch.device_tokens, branch.device_bytes, row.reserved_bytes),
        "host": _held(row.host_tokens, row.host_bytes, branch.host_tokens, branch.host_bytes),
        "disk": _held(row.disk_tokens, row.disk_bytes, branch.disk_tokens, branch.disk_bytes),
        "engine": {"tokens": row.engine_tokens},
        "check": None
        if check is None
        else {"is_running": check.is_running, "agrees": check.agrees, "sentence": check.sentence, "at": check.at},
    }


def _held(
    tokens: int, used_bytes: int, branch_tokens: int, branch_bytes: int, reserved_bytes: int = 0
) -> dict[str, int]:
    return {
        "tokens": tokens,
        "used_bytes": used_bytes,
        "branch_tokens": branch_tokens,
        "branch_bytes": branch_bytes,
        "reserved_bytes": reserved_bytes,
    }
