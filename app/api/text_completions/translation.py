"""Translates a text completion into a `RawRequest`. Refuses what cannot be honoured instead of ignoring it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from app.api.fields.other_fields import ignored_fields
from app.api.requests import ChatCompletionRequest, Message
from app.api.text_completions.requests import SHARED, TextCompletionRequest
from app.api.translation.request import refuse_other_model, with_format
from app.api.translation.sampling import limits_of, sampling_of
from app.api.translation.unsupported import unsupported
from app.model_names import ModelNames
from model_runtime.interface.chat import TurnTemplate
from model_runtime.interface.grammar import Grammar
from model_runtime.interface.protocol import ModelInfo
from sessions.turns.raw_turns import RawRequest


@dataclass(frozen=True, slots=True)
class TranslatedPrompt:
    """`ignored` names what in the request changes nothing."""

    request: RawRequest
    ignored: tuple[str, ...]


def raw_request(
    body: TextCompletionRequest,
    info: ModelInfo,
    names: ModelNames,
    template: TurnTemplate,
    grammar_refusal: Callable[[Grammar], str],
) -> TranslatedPrompt:
    """Raises `Problem`, or `ValueError` with a sentence."""
    refuse_other_model(body.model, info.name, names)
    ignored = ignored_fields(body)
    _refuse_unsupported(body)
    settings = _settings(body)
    sampling, _ = with_format(sampling_of(settings, info), settings, template, (), grammar_refusal)
    return TranslatedPrompt(RawRequest(_prompt(body), sampling, not limits_of(settings)), ignored)


def _settings(body: TextCompletionRequest) -> ChatCompletionRequest:
    """The fields that a chat completion has too, with the same meaning."""
    shared = {name: getattr(body, name) for name in SHARED if name in body.model_fields_set}
    told: dict[str, Any] = {} if body.logprobs is None else {"logprobs": True, "top_logprobs": body.logprobs}
    return ChatCompletionRequest.model_construct(messages=[Message(role="user", content="")], **shared, **told)


def _prompt(body: TextCompletionRequest) -> str | tuple[int, ...]:
    prompt = body.prompt
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        if len(prompt) > 1:
            raise unsupported("prompt", "One answer is written for each request: send the prompts one by one.")
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    if not prompt:
        raise unsupported("prompt", "prompt has no ids.")
    return tuple(one for one in prompt if isinstance(one, int))


def _refuse_unsupported(body: TextCompletionRequest) -> None:
    if body.suffix:
        raise unsupported(
            "suffix", "suffix is not supported: write the model's own marks for the middle of a text into the prompt."
        )
    if body.echo:
        raise unsupported("echo", "echo is not supported: the response has only what is new.")
    for name in ("n", "best_of"):
        if getattr(body, name) not in (None, 1):
            raise unsupported(name, f"One answer is written for each request: {name} must be 1.")
    if body.stream_options is not None and not body.stream:
        raise unsupported("stream_options", "stream_options needs stream to be true.")
