"""`/api/chat`, `/api/generate`, `/api/tags`, `/api/show`, `/api/ps` and `/api/version`."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.api.answering import Answering
from app.api.json_route import json_route
from app.api.ollama import models
from app.api.ollama.answers import OllamaReply, now
from app.api.ollama.context import kept_name, new_context
from app.api.ollama.requests import EmbedRequest, GenerateRequest, OllamaChatRequest, ShowRequest
from app.api.ollama.translation import NAMES, chat_of, plain_name, text_of
from app.api.text_completions.translation import raw_request
from app.api.translation.request import refuse_other_model
from app.api.translation.unsupported import own_names, renamed, unsupported
from app.http.bodies import Bodies
from app.problems import Problem
from model_runtime.interface.chat import ChatMessage
from sessions.errors import ConversationNotFound
from sessions.ledger.response_name import ResponseName
from sessions.named_responses import KnownHistory
from sessions.turns.run import Run

if TYPE_CHECKING:
    from app.services import Services

UNKNOWN_CONTEXT = (
    "context names no answer that is kept here. Send what the last object of an answer of this server had as its "
    "context, or the messages to /api/chat."
)


def ollama_routers(services: Services, bodies: Bodies, answering: Answering) -> tuple[APIRouter, ...]:
    """One for each shape of body, and one without. Its users send JSON with curl's own content type."""
    chats, prompts, shows, embeds = (
        APIRouter(route_class=json_route(services, bodies, shape, takes_forms=True))
        for shape in (OllamaChatRequest, GenerateRequest, ShowRequest, EmbedRequest)
    )
    facts, since = APIRouter(), now()
    manager = services.manager

    @chats.post("/chat", summary="Answer a chat")
    async def chat(body: OllamaChatRequest, request: Request) -> Response:
        return await answered(body, request, is_empty=not body.messages)

    @prompts.post("/generate", summary="Answer a prompt")
    async def generate(body: GenerateRequest, request: Request) -> Response:
        return await answered(body, request, is_empty=not body.prompt and not body.raw)

    @shows.post("/show", summary="Describe a model")
    async def show(body: ShowRequest) -> dict[str, Any]:
        name = served(body.model or body.name)
        return models.shown(manager.info, manager.completions.template, name, since)

    @embeds.post("/embed", summary="Refused: this model makes no embeddings")
    @embeds.post("/embeddings", summary="Refused: this model makes no embeddings")
    async def embed(body: EmbedRequest) -> dict[str, Any]:
        raise Problem(400, f"{manager.info.name} is no embedding model: it writes text.", "unsupported_model", "model")

    @facts.head("/tags", include_in_schema=False)
    @facts.get("/tags", summary="List the served model")
    def tags(request: Request) -> dict[str, Any]:
        services.callers.owner_of(request)
        names = dict.fromkeys((manager.info.name, *services.names.aliases))
        return {"models": [models.described(manager.info, name, since) for name in names]}

    @facts.get("/ps", summary="List the loaded model")
    def loaded(request: Request) -> dict[str, Any]:
        services.callers.owner_of(request)
        return {"models": [models.running(manager.info, manager.info.name, since)]}

    @facts.head("/version", include_in_schema=False)
    @facts.get("/version", summary="The version of Ollama whose API this is")
    def version(request: Request) -> dict[str, Any]:
        services.callers.owner_of(request)
        return {"version": models.SPOKEN_VERSION}

    async def answered(body: OllamaChatRequest | GenerateRequest, request: Request, is_empty: bool) -> Response:
        began_s, is_chat = time.monotonic(), isinstance(body, OllamaChatRequest)
        name = served(body.model)
        if is_empty:
            return JSONResponse(_loaded(body, name, is_chat))

        def begin(owner_id: str) -> tuple[Run, OllamaReply]:
            ignored: list[str] = []
            notes: list[str] = []
            with renamed(NAMES):
                run, more, told, context = begun(owner_id, body, ignored, notes)
            said = (*ignored, *own_names(more, NAMES)), (*notes, *told)
            return run, OllamaReply(run, name, is_chat, began_s, *said, context)

        return await answering.answer(request, begin, body.stream is not False)

    def begun(
        owner_id: str, body: OllamaChatRequest | GenerateRequest, ignored: list[str], notes: list[str]
    ) -> tuple[Run, tuple[str, ...], tuple[str, ...], tuple[int, ...]]:
        """(run, more that is ignored, more notes, the name of the answer to a prompt)."""
        context_tokens, own = manager.info.context_limit_tokens, manager.info.name
        completions = manager.completions
        if isinstance(body, GenerateRequest) and body.raw:
            text = text_of(body, context_tokens, ignored, notes)
            text.model = own
            asked = raw_request(text, manager.info, services.names, completions.template, completions.grammar_refusal)
            return manager.raw_completions.begin(owner_id, asked.request), asked.ignored, (), ()
        before = history_of(owner_id, body) if isinstance(body, GenerateRequest) else KnownHistory((), ())
        settings = chat_of(body, context_tokens, ignored, notes, (*before.head, *before.messages))
        settings.model = own
        found = answering.translated(settings)
        asked_chat, context = found.request, tuple[int, ...]()
        if isinstance(body, GenerateRequest):
            context = new_context()
            asked_chat = replace(asked_chat, name=ResponseName(str(kept_name(context)), before.head, {}))
        run = completions.begin(owner_id, asked_chat)
        return run, found.ignored, found.notes, context

    def history_of(owner_id: str, body: GenerateRequest) -> KnownHistory:
        """What was said before a prompt. A system prompt that comes with it takes the place of an earlier one."""
        before, name = KnownHistory((), ()), kept_name(body.context or ())
        if body.context:
            try:
                if name is None:
                    raise ConversationNotFound
                before = manager.responses.history(owner_id, name)
            except ConversationNotFound:
                raise unsupported("context", UNKNOWN_CONTEXT) from None
        return replace(before, head=(ChatMessage("system", body.system),)) if body.system else before

    def served(asked: str | None) -> str:
        names = (manager.info.name, *services.names.aliases)
        refuse_other_model(plain_name(asked, names), manager.info.name, services.names)
        return asked or manager.info.name

    return chats, prompts, shows, embeds, facts


def _loaded(body: OllamaChatRequest | GenerateRequest, name: str, is_chat: bool) -> dict[str, Any]:
    """The answer to a request without a question, which in Ollama loads a model or unloads it."""
    if body.keep_alive in (0, "0", "0s"):
        raise unsupported("keep_alive", "keep_alive cannot unload the model: this server runs one, which stays loaded.")
    said: dict[str, Any] = {"message": {"role": "assistant", "content": ""}} if is_chat else {"response": ""}
    return {"model": name, "created_at": now(), **said, "done": True, "done_reason": "load"}
