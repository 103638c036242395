"""What a client may send to `/tokenize`, `/detokenize` and `/v1/embeddings`: as vLLM and llama.cpp take it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from app.api.requests import MOST_MESSAGES, MOST_TOOLS, Message, Strict, Tool
from app.api.text_completions.requests import Ids


class TokenizeRequest(Strict):
    """One of `prompt`, `content` (another name of it) and `messages`."""

    model: str | None = None
    prompt: str | None = Field(default=None, description="A text.")
    content: str | None = Field(default=None, description="Another name of the same.")
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)] | None = Field(
        default=None, description="A chat, tokenised as it would be asked."
    )
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS, fail_fast=True)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool | None = Field(default=None, description="What the tokenizer writes before a text: true.")
    add_special: bool | None = Field(default=None, description="Another name of the same.")
    return_token_strs: bool | None = False
    with_pieces: bool | None = Field(default=False, description="Each token as an object with `id` and `piece`.")


class DetokenizeRequest(Strict):
    model: str | None = None
    tokens: Ids


class EmbeddingsRequest(Strict):
    """Refused: the served model is no embedding model."""

    model: str | None = None
    input: Any = None
