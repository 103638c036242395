"""The tools that a request offers the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from app.api.requests import ChatCompletionRequest, Tool
from app.api.translation.unsupported import unsupported
from app.problems import Problem
from model_runtime.interface.chat import TurnTemplate
from sessions.text import clean_exactly

GENERIC = "This model's chat template shows no tools: they are described to it in a generic format."
LOOSER = "Not all that the tools' parameters say can be enforced: the model sees it, and is held to the rest."
TOOL_KEYS = ("name", "description", "parameters", "strict")


@dataclass(frozen=True, slots=True)
class OfferedTools:
    """`definitions` is a JSON text for each. `notes` are sentences about how the model sees them; `are_left_out` when
    it sees none of them."""

    definitions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    are_left_out: bool = False


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether the model may call ("auto"), must ("required") or must not ("none"), and which tools, by their `names`:
    None for all that are offered."""

    mode: str = "auto"
    names: frozenset[str] | None = None

    @property
    def is_free(self) -> bool:
        """Whether nothing has to be enforced."""
        return self.mode == "none" or (self.mode == "auto" and self.names is None)


def choice_of(asked: Any, tools: Sequence[Tool]) -> ToolChoice:
    """What a request's `tool_choice` says of its `tools`. Raises `Problem`."""
    if asked in (None, "auto", "none", "required"):
        if asked == "required" and not tools:
            raise unsupported("tool_choice", "tool_choice needs tools.")
        return ToolChoice(asked or "auto")
    kind = asked.get("type") if isinstance(asked, dict) else None
    offered = {tool.function.name for tool in tools}
    if kind == "allowed_tools":
        mode, names = _allowed(asked)
        if unknown := [name for name in names if name not in offered]:
            sentence = f"tool_choice allows {unknown[0][:80]!r}, which is none of the request's tools."
            raise unsupported("tool_choice.tools", sentence)
        return ToolChoice(mode, None if mode == "auto" and offered <= set(names) else frozenset(names))
    name = _name_of(asked) if kind == "function" else None
    if not tools:
        raise unsupported("tool_choice", "tool_choice needs tools.")
    if name is not None and name not in offered:
        raise unsupported("tool_choice", f"tool_choice names {name[:80]!r}, which is none of the request's tools.")
    if name is None:
        raise unsupported(
            "tool_choice",
            "tool_choice must be 'auto', 'none', 'required', name one of the tools, or be of type allowed_tools.",
        )
    return ToolChoice("required", frozenset((name,)))


def _allowed(asked: dict[str, Any]) -> tuple[str, list[str]]:
    """(the mode, the names) of a choice of type allowed_tools, as chat completions or responses have it."""
    said = asked.get("allowed_tools", {name: value for name, value in asked.items() if name != "type"})
    if not isinstance(said, dict) or set(said) - {"mode", "tools"} or set(asked) - {"type", "allowed_tools", *said}:
        raise unsupported("tool_choice", "tool_choice of type allowed_tools has a mode and tools, and nothing else.")
    mode, listed = said.get("mode"), said.get("tools")
    if mode not in ("auto", "required"):
        raise unsupported("tool_choice.mode", "tool_choice.mode must be 'auto' or 'required'.")
    names = [_name_of(one) for one in listed] if isinstance(listed, list) else []
    if not names or None in names:
        sentence = "tool_choice.tools must be a list of tools: each of type 'function', with its name."
        raise unsupported("tool_choice.tools", sentence)
    return mode, [name for name in names if name is not None]


def _name_of(asked: Any) -> str | None:
    """The name of a function that is named as chat completions or responses do."""
    if not isinstance(asked, dict) or asked.get("type") != "function":
        return None
    named = asked.get("function", asked)
    name = named.get("name") if isinstance(named, dict) else None
    return name if isinstance(name, str) else None


def tools_of(body: ChatCompletionRequest, template: TurnTemplate, context_tokens: int) -> OfferedTools:
    """Raises `Problem`."""
    choice = choice_of(body.tool_choice, body.tools or ())
    if not body.tools or choice.mode == "none":
        return OfferedTools()
    if not template.takes_tools:
        raise unsupported("tools", "This model's chat template does not support tools. Send the request without them.")
    definitions = tuple(_tool(tool) for tool in body.tools)
    if not template.tools_are_generic:
        return OfferedTools(definitions)
    count, fit = sum(template.count(definition) for definition in definitions), context_tokens // 2
    if count > fit and choice.mode == "auto":
        note = (
            f"The tools' definitions have {count:,} tokens, and at most {fit:,} are shown to this model: it saw none."
        )
        return OfferedTools(notes=(note,), are_left_out=True)
    return OfferedTools(definitions, (GENERIC,))


def loosened(
    tools: tuple[str, ...], refusal: Callable[[tuple[str, ...], tuple[str, ...]], str]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """(the tools for a grammar alone, which of these are lenient, the names of those that say less). `refusal` says why
    a grammar of tools, of which some are lenient, cannot be kept to. Each tool is loosened for itself, no further than
    it has to be: first without the keywords that the grammar does not know, then with any object. One that is `strict`
    stays."""
    found: list[str] = []
    lenient: list[str] = []
    names: list[str] = []
    for tool in tools:
        function = json.loads(tool)["function"]
        shown = tool
        if not function.get("strict") and refusal((tool,), ()):
            names.append(function["name"])
            if refusal((tool,), (tool,)):
                function["parameters"] = {"type": "object"}
                shown = json.dumps({"type": "function", "function": function}, ensure_ascii=False)
            lenient.append(shown)
        found.append(shown)
    return tuple(found), tuple(lenient), tuple(names)


def looser_note(names: Sequence[str]) -> str:
    """What is said of tools by these names."""
    which = ", ".join(names[:8]) + (f" and {len(names) - 8:,} more" if len(names) > 8 else "")
    return f"{LOOSER} That concerns {which}."


def _tool(tool: Tool) -> str:
    """The tool as JSON with only the fields that OpenAI's API defines, in a fixed order, so that the same tools always
    begin the same history."""
    try:
        function = tool.function.model_dump(exclude_none=True, include=set(TOOL_KEYS))
        return clean_exactly(json.dumps({"type": "function", "function": function}, ensure_ascii=False))
    except (RecursionError, ValueError):
        raise Problem(400, "A tool's parameters are nested too deeply.", "invalid_value", "tools") from None
