"""The shapes of token ids and texts, for the OpenAPI document."""

from __future__ import annotations

from pydantic import BaseModel


class Piece(BaseModel):
    id: int
    piece: str


class Tokens(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int] | list[Piece]
    token_strs: list[str] | None


class Text(BaseModel):
    """The same text under vLLM's and llama.cpp's name."""

    prompt: str
    content: str
