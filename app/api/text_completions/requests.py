"""What a client may send to `/v1/completions`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from app.api.requests import ChatCompletionRequest, StreamOptions, Strict, Whole
from model_runtime.interface.sampling_params import MOST_NAMED_TOKENS

MOST_IDS = 200_000
MANY = Field(max_length=MOST_IDS, fail_fast=True)
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=MOST_IDS, fail_fast=True)]


class TextCompletionRequest(Strict):
    """A text to go on with. The stored text with the longest matching beginning is continued."""

    model: str | None = Field(default=None, description="An id that GET /v1/models lists.")
    prompt: str | Ids | Annotated[list[str], MANY] | Annotated[list[Ids], MANY] = Field(
        description="A text, or token ids; or a list with one of them."
    )
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Whole | None = Field(default=None, ge=-1, description="None or -1: up to the model's context.")
    min_tokens: Whole | None = Field(default=None, ge=0)
    ignore_eos: bool | None = False
    temperature: float | None = Field(default=None, ge=0, le=5)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: Whole | None = Field(default=None, ge=-1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, ge=0.1, le=10)
    repeat_penalty: float | None = Field(default=None, ge=0.1, le=10)
    repeat_last_n: Whole | None = Field(default=None, ge=-1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    seed: Whole | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    stop_token_ids: Annotated[list[int], Field(max_length=MOST_NAMED_TOKENS, fail_fast=True)] | None = None
    logprobs: Whole | None = Field(default=None, ge=0, le=20, description="How many of the most likely tokens.")
    logit_bias: dict[str, float] | None = Field(default=None, max_length=MOST_NAMED_TOKENS)
    n: Whole | None = Field(default=1, description="Must be 1.")
    best_of: Whole | None = Field(default=1, description="Must be 1.")
    echo: bool | None = Field(default=False, description="Must be false.")
    suffix: str | None = Field(default=None, description="Must be empty.")
    response_format: Any = None
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: Any = None
    guided_grammar: str | None = None
    grammar: str | None = None
    json_schema: Any = None
    structured_outputs: dict[str, Any] | None = None


SHARED = tuple(
    name
    for name in TextCompletionRequest.model_fields
    if name in ChatCompletionRequest.model_fields and name not in ("logprobs", "n")
)
