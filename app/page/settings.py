"""One conversation's settings: between the form's fields, which are text as a person typed it, and the validated
dataclass."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from app import units
from model_runtime.interface.sampling_params import SamplingParams
from sessions.types import ConversationSettings


@dataclass(frozen=True, slots=True)
class Field:
    """One field of the form. `kind` is "number", "whole" or "lines"."""

    name: str
    label: str
    info: str
    kind: str


FIELDS = (
    Field(
        "system_prompt",
        "System prompt",
        "Instructions for the model. Changing them makes it read the conversation again.",
        "lines",
    ),
    Field("temperature", "Temperature", "0 always picks the likeliest token.", "number"),
    Field("top_p", "Top-p", "Probability mass of the likeliest tokens to keep; 1 is off.", "number"),
    Field("top_k", "Top-k", "Number of likeliest tokens to keep; 0 is off.", "whole"),
    Field("min_p", "Min-p", "Least probability relative to the best token; 0 is off.", "number"),
    Field("repetition_penalty", "Repetition penalty", "Above 1 discourages repetition; 1 is off.", "number"),
    Field("max_new_tokens", "Max new tokens", "Most tokens in one answer.", "whole"),
    Field("seed", "Seed", "Empty: a new seed for every answer.", "whole"),
    Field("stop_strings", "Stop strings", "One per line; an answer ends before any of them.", "lines"),
)
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_WHOLE = re.compile(r"[+-]?[0-9]{1,100}")


class SettingsRefused(ValueError):
    """Some fields cannot be accepted. `errors` maps a field's name to a sentence."""

    def __init__(self, errors: Mapping[str, str]) -> None:
        super().__init__(" ".join(errors.values()))
        self.errors = dict(errors)


def facts() -> dict[str, Any]:
    """The fields as JSON for the page's script."""
    return {"fields": [asdict(field) for field in FIELDS]}


def to_form(settings: ConversationSettings, context_limit_tokens: int) -> dict[str, str]:
    """The fields' texts by name. A limit beyond the model's context, which a model's files may ask for, is shown as
    the context: that is where an answer ends."""
    sampling = settings.sampling
    form = {field.name: _shown(getattr(sampling, field.name)) for field in FIELDS[1:-1]}
    form["max_new_tokens"] = str(min(sampling.max_new_tokens, context_limit_tokens))
    return {"system_prompt": settings.system_prompt, **form, "stop_strings": "\n".join(sampling.stop_strings)}


def from_form(form: Mapping[str, str], old: ConversationSettings, context_limit_tokens: int) -> ConversationSettings:
    """The validated settings; what the form has no field for, and what was not touched, stays as in `old`. Raises
    `SettingsRefused`."""
    shown, chosen, errors = to_form(old, context_limit_tokens), dict[str, Any](), dict[str, str]()
    for field in FIELDS[1:]:
        if form[field.name] == shown[field.name]:  # untouched: the form may show less than is stored
            continue
        try:
            chosen[field.name] = _PARSERS.get(field.name, _PARSERS[field.kind])(field, form[field.name])
            replace(SamplingParams(), **{field.name: chosen[field.name]})
            if field.name == "max_new_tokens" and chosen[field.name] > context_limit_tokens:
                limit = units.tokens(context_limit_tokens)
                raise ValueError(f"{field.label} must be at most {limit}: no more fit into a conversation.")
        except ValueError as error:
            errors[field.name] = str(error)
    if errors:
        raise SettingsRefused(errors)
    return ConversationSettings(replace(old.sampling, **chosen), form["system_prompt"])


def _shown(value: float | None) -> str:
    return "" if value is None else repr(value).removesuffix(".0")


def _number(field: Field, text: str) -> float:
    typed = _typed(field, text)
    if not _NUMBER.fullmatch(typed):
        raise ValueError(f"{field.label} must be a number like 0.7, not “{typed[:40]}”.")
    return float(typed)


def _whole(field: Field, text: str) -> int:
    typed = _typed(field, text)
    if not _WHOLE.fullmatch(typed):
        raise ValueError(f"{field.label} must be a whole number, not “{typed[:40]}”.")
    return int(typed)


def _seed(field: Field, text: str) -> int | None:
    return _whole(field, text) if text.strip() else None


def _lines(field: Field, text: str) -> tuple[str, ...]:
    return tuple(line for line in text.split("\n") if line)


def _typed(field: Field, text: str) -> str:
    if not text.strip():
        raise ValueError(f"{field.label} must not be empty.")
    return text.strip()


_PARSERS: Mapping[str, Callable[[Field, str], Any]] = {
    "number": _number,
    "whole": _whole,
    "lines": _lines,
    "seed": _seed,
}
