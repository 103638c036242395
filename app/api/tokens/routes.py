"""`POST /tokenize`, `/detokenize` and `/embeddings`, below /v1; the first two also at the root, where vLLM has them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from app.api.answering import Answering
from app.api.fields.other_fields import ignored_fields
from app.api.json_route import json_route
from app.api.requests import ChatCompletionRequest
from app.api.responses import REFUSALS
from app.api.text_completions.requests import MOST_IDS
from app.api.tokens.requests import DetokenizeRequest, EmbeddingsRequest, TokenizeRequest
from app.api.tokens.responses import Text, Tokens
from app.api.translation.request import refuse_other_model
from app.api.translation.unsupported import unsupported
from app.http.bodies import Bodies
from app.problems import Problem
from sessions.text import clean_exactly, refuse_if_huge

if TYPE_CHECKING:
    from app.services import Services

CHAT_FIELDS = ("model", "messages", "tools", "chat_template_kwargs")


def tokens_routers(services: Services, bodies: Bodies, answering: Answering) -> tuple[APIRouter, ...]:
    """One for each shape of body."""
    tokenizing, detokenizing, embedding = (
        APIRouter(route_class=json_route(services, bodies, shape))
        for shape in (TokenizeRequest, DetokenizeRequest, EmbeddingsRequest)
    )
    manager = services.manager
    codec = manager.completions.template.raw

    @tokenizing.post("/tokenize", summary="A text's token ids", response_model=Tokens, responses=REFUSALS)
    async def tokenize(body: TokenizeRequest, request: Request) -> Response:
        return await answering.compute(request, partial(tokens_of, body))

    @detokenizing.post("/detokenize", summary="The text of token ids", response_model=Text, responses=REFUSALS)
    async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
        return await answering.compute(request, lambda owner_id: text_of(body))

    @embedding.post("/embeddings", summary="Refused: this model makes none", response_model=Text, responses=REFUSALS)
    async def embed(body: EmbeddingsRequest) -> dict[str, Any]:
        sentence = f"{manager.info.name} is no embedding model: it writes text. Ask a server with an embedding model."
        raise Problem(400, sentence, "unsupported_model", "model")

    def tokens_of(body: TokenizeRequest, owner_id: str) -> dict[str, Any]:
        refuse_other_model(body.model, manager.info.name, services.names, may_lack=True)
        ignored_fields(body)
        given = [name for name in ("prompt", "content", "messages") if getattr(body, name) is not None]
        if len(given) != 1:
            raise unsupported("prompt", "Send one of prompt, content and messages.")
        if body.messages is not None:
            fields = {name: getattr(body, name) for name in CHAT_FIELDS if name in body.model_fields_set}
            fields["model"] = manager.info.name
            asked = answering.translated(ChatCompletionRequest.model_construct(**fields))
            ids = manager.completions.prompt_ids(owner_id, asked.request)
        else:
            text = clean_exactly(getattr(body, given[0]))
            refuse_if_huge(text, manager.most_message_bytes, "This text")
            ids = codec.ids(text, _adds_special(body))
            if len(ids) > MOST_IDS:
                raise unsupported(given[0], f"This text has {len(ids):,} tokens; at most {MOST_IDS:,} are told.")
        pieces = codec.pieces(ids) if body.return_token_strs or body.with_pieces else None
        tokens = (
            [{"id": i, "piece": p} for i, p in zip(ids, pieces, strict=True)] if body.with_pieces and pieces else ids
        )
        return {
            "count": len(ids),
            "max_model_len": manager.info.context_limit_tokens,
            "tokens": list(tokens),
            "token_strs": list(pieces) if body.return_token_strs and pieces is not None else None,
        }

    def text_of(body: DetokenizeRequest) -> dict[str, Any]:
        refuse_other_model(body.model, manager.info.name, services.names, may_lack=True)
        ignored_fields(body)
        vocabulary = manager.info.vocabulary_tokens
        for token_id in body.tokens:
            if vocabulary and token_id >= vocabulary:
                sentence = f"tokens has the id {token_id}; this model has ids from 0 to {vocabulary - 1:,}."
                raise unsupported("tokens", sentence)
        text = codec.text(body.tokens)
        return {"prompt": text, "content": text}

    return tokenizing, detokenizing, embedding


def _adds_special(body: TokenizeRequest) -> bool:
    if body.messages is None and (body.tools or body.chat_template_kwargs):
        raise unsupported("tools", "tools and chat_template_kwargs need messages.")
    one, other = body.add_special_tokens, body.add_special
    if one is not None and other is not None and one != other:
        raise unsupported("add_special", "add_special and add_special_tokens are the same: send one of them.")
    return other is not False if one is None else one
