"""What a request asks of the model's chat template: whether and how much the model thinks, and its other variables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from app.api.requests import ChatCompletionRequest
from app.api.translation.unsupported import unsupported
from model_runtime.interface.chat import TurnTemplate

THINKING = ("enable_thinking", "thinking")  # the names under which templates read the switch
EFFORT = "reasoning_effort"
MOST_CHARS = 4096
LARGEST_NUMBER = 10**6  # a template may count up to it


def template_variables(body: ChatCompletionRequest, template: TurnTemplate) -> tuple[str, tuple[str, ...]]:
    """(values of the template's variables as a JSON object, "" for none; the fields that change nothing). Raises
    `Problem` for what cannot be honoured."""
    values: dict[str, Any] = {}
    ignored: list[str] = []
    for name, value in (body.chat_template_kwargs or {}).items():
        if name in template.variables:
            values[name] = value
        elif name in THINKING and isinstance(value, bool):
            _think(f"chat_template_kwargs.{name}", value, template, values, ignored)
        else:
            raise _unread(name, template)
    for name, value in _switches(body):
        _think(name, value, template, values, ignored)
    if body.reasoning_effort is not None:
        _effort(body.reasoning_effort, template, values, ignored)
    return _dumped(values), tuple(ignored)


def _switches(body: ChatCompletionRequest) -> Iterator[tuple[str, bool]]:
    if body.enable_thinking is not None:
        yield "enable_thinking", body.enable_thinking
    asked = body.thinking
    if isinstance(asked, dict) and set(asked) == {"type"} and asked["type"] in ("enabled", "disabled"):
        yield "thinking", asked["type"] == "enabled"
    elif isinstance(asked, bool):
        yield "thinking", asked
    elif asked is not None:
        raise unsupported("thinking", 'thinking must be {"type": "enabled"} or {"type": "disabled"}.')


def _think(field: str, is_wanted: bool, template: TurnTemplate, values: dict[str, Any], ignored: list[str]) -> None:
    switch = next((name for name in THINKING if name in template.variables), None)
    if switch is not None:
        if values.setdefault(switch, is_wanted) is not is_wanted:
            raise unsupported(field, f"{field} says the opposite of another field of this request.")
    elif is_wanted and not template.has_thoughts:
        raise unsupported(field, f"{field} cannot be honoured: this model does not think before it answers.")
    elif not is_wanted and template.has_thoughts:
        raise unsupported(field, f"{field} cannot be honoured: this model's chat template has no switch for thoughts.")
    else:
        ignored.append(field)  # as it is anyway


def _effort(effort: str, template: TurnTemplate, values: dict[str, Any], ignored: list[str]) -> None:
    if EFFORT in template.variables:
        if values.setdefault(EFFORT, effort) != effort:
            raise unsupported(EFFORT, f"{EFFORT} and chat_template_kwargs.{EFFORT} differ.")
    elif effort == "none":
        _think(EFFORT, False, template, values, ignored)
    else:
        ignored.append(EFFORT)  # this model knows no degrees of it


def _unread(name: str, template: TurnTemplate) -> Exception:
    read = f"It reads {', '.join(template.variables)}." if template.variables else "It reads no variables."
    where = f"chat_template_kwargs.{name[:80]}"
    return unsupported(where, f"{where} would change nothing: this model's chat template does not read it. {read}")


def _dumped(values: dict[str, Any]) -> str:
    if not values:
        return ""
    try:
        text = json.dumps(values, ensure_ascii=False, sort_keys=True)
    except RecursionError:
        text = " " * (MOST_CHARS + 1)
    if len(text) > MOST_CHARS:
        raise unsupported("chat_template_kwargs", f"chat_template_kwargs may have at most {MOST_CHARS:,} characters.")
    if any(abs(number) > LARGEST_NUMBER for number in _numbers(values)):
        raise unsupported(
            "chat_template_kwargs", f"A number in chat_template_kwargs may be at most {LARGEST_NUMBER:,}."
        )
    return text


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, int | float):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _numbers(one)
