"""How the answer's tokens are chosen, from the fields of a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from app.api.requests import ChatCompletionRequest
from app.api.translation.unsupported import unsupported
from model_runtime.interface.protocol import ModelInfo
from model_runtime.interface.sampling_params import SamplingParams
from sessions.text import clean_exactly

MOST_STOPS = 16
LEAST_TOP_P = 1e-9  # the most probable token alone, which is what 0 asks for
MOST_TOKENS = 1_000_000  # of an answer, and kept by top_k: more than any context and vocabulary


def sampling_of(body: ChatCompletionRequest, info: ModelInfo) -> SamplingParams:
    """Raises `Problem`, or `ValueError` with a sentence. Without a limit in the request, that of the context."""
    asked: dict[str, Any] = {
        name: value
        for name in ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty")
        if (value := getattr(body, name)) is not None
    }
    asked["max_new_tokens"] = min(*limits_of(body), info.context_limit_tokens, MOST_TOKENS)
    if body.top_k is not None:
        asked["top_k"] = min(max(body.top_k, 0), MOST_TOKENS)
    if body.top_p == 0:
        asked["top_p"] = LEAST_TOP_P
    if (penalty := _repetition_penalty(body)) is not None:
        asked["repetition_penalty"] = penalty
    if (last := body.repeat_last_n) is not None and last >= 0:
        asked["penalty_window"] = min(last, info.context_limit_tokens)  # -1, too, is all that the context holds
    if body.seed is not None:
        asked["seed"] = body.seed % 2**63
    if body.logprobs:
        asked["top_logprobs"] = body.top_logprobs or 0
    return replace(
        info.default_sampling,
        **asked,
        stop_strings=_stop_strings(body),
        stop_token_ids=_known("stop_token_ids", body.stop_token_ids or (), info),
        logit_bias=_logit_bias(body, info),
        min_new_tokens=body.min_tokens or 0,
        ignore_eos=bool(body.ignore_eos),
    )


def limits_of(body: ChatCompletionRequest) -> list[int]:
    """The request's limits of the answer. None for -1, which asks for all that fits. Raises `Problem`."""
    found = []
    for name in ("max_completion_tokens", "max_tokens"):
        limit = getattr(body, name)
        if limit == 0:
            raise unsupported(name, f"{name} must be at least 1. Leave it out for an answer of any length.")
        if limit is not None and limit > 0:
            found.append(limit)
    return found


def _repetition_penalty(body: ChatCompletionRequest) -> float | None:
    one, other = body.repetition_penalty, body.repeat_penalty
    if one is not None and other is not None and one != other:
        raise unsupported("repeat_penalty", "repeat_penalty and repetition_penalty are the same: send one of them.")
    return other if one is None else one


def _stop_strings(body: ChatCompletionRequest) -> tuple[str, ...]:
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if len(stops) > MOST_STOPS:
        raise unsupported("stop", f"At most {MOST_STOPS} stop strings are supported, not {len(stops):,}.")
    if not all(stops):
        raise unsupported("stop", "A stop string must not be empty.")
    return tuple(clean_exactly(stop) for stop in stops)


def _logit_bias(body: ChatCompletionRequest, info: ModelInfo) -> tuple[tuple[int, float], ...]:
    biases: dict[int, float] = {}
    for name, bias in (body.logit_bias or {}).items():
        if not (name.isascii() and name.isdigit() and len(name) < 20):
            raise unsupported("logit_bias", f"logit_bias needs token ids as names, not {name[:40]!r}.")
        if not -100 <= bias <= 100:
            raise unsupported("logit_bias", f"A logit_bias must be between -100 and 100, not {bias}.")
        biases[int(name)] = bias
    _known("logit_bias", tuple(biases), info)
    return tuple(biases.items())


def _known(param: str, token_ids: Sequence[int], info: ModelInfo) -> tuple[int, ...]:
    for token_id in token_ids:
        if not 0 <= token_id < (info.vocabulary_tokens or token_id + 1):
            most = info.vocabulary_tokens - 1
            raise unsupported(param, f"{param} names the token id {token_id}; this model has ids from 0 to {most:,}.")
    return tuple(dict.fromkeys(token_ids))
