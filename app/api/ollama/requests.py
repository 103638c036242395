"""What a client may send to `/api/chat`, `/api/generate`, `/api/show` and `/api/embed`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from app.api.requests import MOST_MESSAGES, MOST_PARTS, MOST_TOOLS, Strict, Tool, Whole


class Options(Strict):
    """`num_ctx` asks for a context that the served model has or has not. The fields without a type are about the
    server's own work."""

    num_predict: Whole | None = Field(default=None, ge=-2, description="Below 0: up to the model's context.")
    num_ctx: Whole | None = Field(default=None, ge=1)
    seed: Whole | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    temperature: float | None = Field(default=None, ge=0, le=5)
    top_k: Whole | None = Field(default=None, ge=-1)
    top_p: float | None = Field(default=None, ge=0, le=1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repeat_penalty: float | None = Field(default=None, ge=0.1, le=10)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    repeat_last_n: Whole | None = Field(
        default=None, ge=-1, description="How many last tokens penalties are over; 0: none, -1: the context."
    )
    typical_p: float | None = Field(default=None, description="Must be 1.")
    tfs_z: float | None = Field(default=None, description="Must be 1.")
    mirostat: Whole | None = Field(default=None, description="Must be 0.")
    mirostat_tau: Any = None
    mirostat_eta: Any = None
    penalize_newline: Any = None
    num_keep: Any = None
    num_batch: Any = None
    num_gpu: Any = None
    num_thread: Any = None
    main_gpu: Any = None
    low_vram: Any = None
    f16_kv: Any = None
    logits_all: Any = None
    vocab_only: Any = None
    use_mmap: Any = None
    use_mlock: Any = None
    embedding_only: Any = None
    numa: Any = None


class OllamaFunction(Strict):
    name: str
    arguments: dict[str, Any] | str | None = None
    index: Whole | None = None


class OllamaCall(Strict):
    """A call. Its id may be left out: calls and results are told apart by their order."""

    id: str | None = None
    type: str | None = None
    function: OllamaFunction


class OllamaMessage(Strict):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = ""
    thinking: str | None = None
    images: Annotated[list[Any], Field(max_length=MOST_PARTS)] | None = None
    tool_calls: Annotated[list[OllamaCall], Field(max_length=MOST_TOOLS, fail_fast=True)] | None = None
    tool_name: str | None = None
    name: str | None = None
    tool_call_id: str | None = None


class _Answered(Strict):
    """What chats and prompts have in common."""

    model: str | None = Field(default=None, description="A name that GET /api/tags lists.")
    stream: bool | None = True
    format: str | dict[str, Any] | None = Field(default=None, description='"json", or a JSON schema.')
    options: Options | None = None
    keep_alive: float | str | None = Field(default=None, description="Without effect: the model stays loaded.")
    think: bool | str | None = None
    logprobs: bool | None = False
    top_logprobs: Whole | None = Field(default=None, ge=0, le=20)


class OllamaChatRequest(_Answered):
    """A chat to answer. The conversation with the longest matching beginning is continued."""

    messages: Annotated[list[OllamaMessage], Field(max_length=MOST_MESSAGES, fail_fast=True)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS, fail_fast=True)] | None = None


class GenerateRequest(_Answered):
    """A single question, or with `raw` a text to go on with."""

    prompt: str | None = ""
    system: str | None = None
    raw: bool | None = False
    suffix: str | None = Field(default=None, description="Must be empty.")
    template: str | None = Field(default=None, description="Must be empty: the model's own is used.")
    context: list[int] | None = Field(default=None, description="What an earlier answer gave: goes on behind it.")
    images: Annotated[list[Any], Field(max_length=MOST_PARTS)] | None = None


class ShowRequest(Strict):
    model: str | None = None
    name: str | None = Field(default=None, description="An older name of the same.")
    verbose: bool | None = False


class EmbedRequest(Strict):
    """Refused: the served model is no embedding model."""

    model: str | None = None
    input: Any = None
    prompt: Any = None


class ManageRequest(Strict):
    """A model to pull, push, create or delete."""

    model: str | None = None
    name: str | None = Field(default=None, description="An older name of the same.")
    stream: bool | None = True


class CopyRequest(Strict):
    source: str | None = None
    destination: str | None = None
