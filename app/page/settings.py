"""Converts one conversation's settings between the form's fields and the validated dataclass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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


def to_form(settings: ConversationSettings) -> list[Any]:
    """Values in the order of `FIELDS`."""
    sampling = settings.sampling
    values: list[Any] = [settings.system_prompt]
    values += [getattr(sampling, field.name) for field in FIELDS[1:-1]]
    return [*values, "\n".join(sampling.stop_strings)]


def from_form(values: Sequence[Any]) -> ConversationSettings:
    """The validated settings. Raises `ValueError` with a sentence."""
    form = dict(zip((field.name for field in FIELDS), values, strict=True))
    for field in FIELDS:
        if field.kind in ("number", "whole") and field.name != "seed" and form[field.name] is None:
            raise ValueError(f"{field.label} must not be empty.")
    sampling = SamplingParams(
        temperature=float(form["temperature"]),
        top_p=float(form["top_p"]),
        top_k=_whole(form["top_k"], "Top-k"),
        min_p=float(form["min_p"]),
        repetition_penalty=float(form["repetition_penalty"]),
        max_new_tokens=_whole(form["max_new_tokens"], "Max new tokens"),
        seed=None if form["seed"] is None else _whole(form["seed"], "Seed"),
        stop_strings=tuple(line for line in str(form["stop_strings"] or "").splitlines() if line),
    )
    return ConversationSettings(sampling=sampling, system_prompt=str(form["system_prompt"] or ""))


def _whole(value: float, name: str) -> int:
    if value != int(value):
        raise ValueError(f"{name} must be a whole number, not {value}.")
    return int(value)
