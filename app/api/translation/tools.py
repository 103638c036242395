"""The tools that a request offers the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.api.requests import ChatCompletionRequest, Tool
from app.api.translation.tool_choice import choice_of
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
