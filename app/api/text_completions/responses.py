"""The shape of a text completion, for the OpenAPI document."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from app.api.responses import Receipt, Usage


class TextLogprobs(BaseModel):
    """`text_offset` counts characters from the beginning of the completion."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(BaseModel):
    index: Literal[0]
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]


class TextCompletion(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: None
    choices: list[TextChoice]
    usage: Usage
    keepwarm: Receipt
