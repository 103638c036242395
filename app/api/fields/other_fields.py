"""Fields that Keepwarm does not know: refused by name, unless they ask for nothing or can change no answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import BaseModel

from app.problems import Problem

# They say who asks, label the request, or order the server's own work. The response lists them as `keepwarm.ignored`.
HINTS = frozenset(
    {"user", "metadata", "store", "safety_identifier", "service_tier", "prompt_cache_retention", "session_id"}
    | {"chat_id", "request_id", "id", "createdAt", "created_at", "timestamp", "cache_control", "priority"}
    | {"prediction", "provider", "route", "index", "user_id", "include_obfuscation"}
    | {"inference_geo", "speed", "diagnostics", "user_profile_id", "workspace_id", "eager_input_streaming", "caller"}
    | {"client_metadata", "guided_decoding_backend"}
    # What other servers and clients' own parsers write beside an answer, which comes back with the history.
    | {"annotations", "reasoning_details", "thinking_blocks", "provider_specific_fields", "extra_content"}
    | {"parsed", "parsed_arguments", "citations"}
)
# Known fields that ask for more than is done, which the response therefore lists as well: the model sees `strict`, but
# nothing makes it keep to the parameters' schema.
NOT_ENFORCED: Mapping[str, tuple[Any, ...]] = MappingProxyType({"tools.function.strict": (True,)})
# The value with which a field asks for what is done anyway. Null, "", [] and {} ask for nothing in any field.
NEUTRAL: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "add_generation_prompt": (True,),
        "allowed_callers": (["direct"],),
        "best_of": (1,),
        "cache_prompt": (True,),
        "dry_multiplier": (0,),
        "dynatemp_range": (0,),
        "epsilon_cutoff": (0,),
        "eta_cutoff": (0,),
        "frequency_penalty": (0,),
        "id_slot": (-1,),
        "length_penalty": (1,),
        "min_new_tokens": (0,),
        "mirostat": (0,),
        "n_keep": (0, -1),
        "n_probs": (0,),
        "no_repeat_ngram_size": (0,),
        "num_beams": (1,),
        "penalty_alpha": (0,),
        "presence_penalty": (0,),
        "prompt_logprobs": (0,),
        "include_reasoning": (True,),
        "separate_reasoning": (True,),
        "reasoning_format": ("auto", "deepseek"),
        "shift": (False,),
        "skip_special_tokens": (True,),
        "smoothing_factor": (0,),
        "spaces_between_special_tokens": (True,),
        "tfs": (1,),
        "tfs_z": (1,),
        "top_a": (0,),
        "top_n_sigma": (-1, 0),
        "truncate": ("auto", "disabled", False),
        "typical_p": (1,),
        "usage": ({"include": True},),
        "verbosity": ("medium",),
        "xtc_probability": (0,),
    }
)
# They say how something is done that only another field asks for, which is refused unless it is off.
_OF_WHAT_IS_OFF = frozenset(
    {"dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers", "dynatemp_exponent"}
    | {"mirostat_tau", "mirostat_eta", "smoothing_curve", "xtc_threshold"}
)
INSTEAD: Mapping[str, str] = MappingProxyType(
    {
        "best_of": "one answer is written for each request",
        "bad_words": "words cannot be forbidden",
        "cache_prompt": "memory is kept between requests",
        "chat_template": "the model's own template is used",
        "documents": "write them into a message",
    }
)
# The fields that mean the same, of which each protocol has its own.
MEANT: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "max_tokens": ("max_output_tokens", "options.num_predict"),
        "max_output_tokens": ("max_tokens", "options.num_predict"),
        "n_predict": ("max_tokens", "max_output_tokens", "options.num_predict"),
        "max_new_tokens": ("max_tokens", "max_output_tokens", "options.num_predict"),
        "stop_sequences": ("stop", "options.stop"),
        "input": ("messages", "prompt"),
        "prompt": ("messages", "input"),
        "reasoning": ("reasoning_effort", "output_config.effort", "think"),
    }
)
_NOTHING: tuple[Any, ...] = (None, "", [], {})
# Switches that are off. A false elsewhere may ask for something: that a model does not think, that there is one call.
_SWITCHES = frozenset(
    {"add_special_tokens", "defer_loading", "continuous_usage_stats", "detailed", "echo"}
    | {"include_obfuscation", "include_stop_str_in_output", "raw", "return_progress", "return_token_ids"}
    | {"return_tokens_as_token_ids", "timings_per_token", "use_beam_search", "watermark"}
)


def ignored_fields(body: BaseModel) -> tuple[str, ...]:
    """The names of hints in the request that Keepwarm does not act on, each once. Raises `Problem` for the first field
    that it does not know and that asks for something."""
    found: list[str] = []
    for path, name, value in _others(body, ""):
        if _asks_for_nothing(name, value):
            continue
        if name not in HINTS and path not in NOT_ENFORCED:
            raise _unknown(path, _instead(body, path, name))
        if path not in found:
            found.append(path)
    return tuple(found)


def refuse_unused(owner_of: Callable[[Request], object]) -> Callable[[Request], None]:
    """A dependency of every route. It raises `Problem` for query parameters that the route does not have, and for a
    body that nothing would read; first what `owner_of` raises for a caller that is not answered at all."""

    def refuse(request: Request) -> None:
        problem = _unused(request)
        if problem is not None:
            owner_of(request)
            raise problem

    return refuse


def _unused(request: Request) -> Problem | None:
    route = request.scope.get("route")
    if not isinstance(route, APIRoute):
        return None
    known = {parameter.alias for parameter in route.dependant.query_params}
    for name in request.query_params:
        if name not in known:
            also = f" It has {', '.join(sorted(known))}." if known else ""
            sentence = f"This address has no query parameter {name[:100]!r}.{also}"
            return Problem(400, sentence, "unknown_parameter", name[:100])
    if request.method != "GET" and route.body_field is None and _has_body(request):
        sentence = "This address reads no body: use its query parameters, or send none."
        return Problem(400, sentence, "unused_body")
    return None


def _has_body(request: Request) -> bool:
    """Whether a body was sent that asks for something. "{}" is what some clients send for nothing."""
    length = request.headers.get("content-length", "0")
    if "transfer-encoding" in request.headers or not length.isdecimal():
        return True
    return int(length) > len("{}")


def _others(model: BaseModel, where: str) -> Iterator[tuple[str, str, Any]]:
    """(path without indexes, name, value) of every field that the shapes in `app.api.requests` do not have, or do not
    enforce."""
    for name, value in (model.model_extra or {}).items():
        yield f"{where}{name}", name, value
    for name in model.model_fields_set:
        value = getattr(model, name, None)
        if value in NOT_ENFORCED.get(f"{where}{name}", ()):
            yield f"{where}{name}", name, value
        for one in value if isinstance(value, list) else (value,):
            if isinstance(one, BaseModel):
                yield from _others(one, f"{where}{name}.")


def _asks_for_nothing(name: str, value: Any) -> bool:
    if any(value == nothing and type(value) is type(nothing) for nothing in _NOTHING):
        return True
    if name in _OF_WHAT_IS_OFF or (value is False and name in _SWITCHES):
        return True
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in NEUTRAL.get(name, ()))


def _instead(body: BaseModel, path: str, name: str) -> str:
    """What to do instead, as a clause; "" where nothing is known. Only fields that this body has are named."""
    if path in (name, f"options.{name}"):
        for meant in MEANT.get(name, ()):
            if meant.split(".")[0] in type(body).model_fields:
                return f"use {meant}"
    return INSTEAD.get(name, "")


def _unknown(path: str, instead: str) -> Problem:
    why = f": {instead}" if instead else ""
    return Problem(
        400, f"{path[:100]} is not supported, so it would change nothing{why}. Leave it out.", "unsupported_parameter",
        path[:100], is_as_sent=True,
    )  # fmt: skip
