"""The tools that a request offers the model."""

from __future__ import annotations

import json
from dataclasses import dataclass

from app.api.requests import ChatCompletionRequest, Tool
from app.api.translation.unsupported import unsupported
from app.problems import Problem
from model_runtime.interface.chat import TurnTemplate
from sessions.text import clean_exactly

GENERIC = "This model's chat template shows no tools: they are described to it in a generic format."
LOOSER = "Not all that the tools' parameters say can be enforced: the model sees it, and is held to the rest."
TOOL_KEYS = ("name", "description", "parameters", "strict")


_LENIENT = {"x-guidance": {"lenient": True, "coerce_one_of": True}}  # llguidance's words


@dataclass(frozen=True, slots=True)
class OfferedTools:
    """`definitions` is a JSON text for each. `notes` are sentences about how the model sees them; `are_left_out` when
    it sees none of them."""

    definitions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    are_left_out: bool = False


def tools_of(body: ChatCompletionRequest, template: TurnTemplate, context_tokens: int) -> OfferedTools:
    """Raises `Problem`."""
    if not body.tools:
        if body.tool_choice not in (None, "none", "auto"):
            raise unsupported("tool_choice", "tool_choice needs tools.")
        return OfferedTools()
    if body.tool_choice == "none":
        return OfferedTools()
    if not template.takes_tools:
        raise unsupported("tools", "This model's chat template does not support tools. Send the request without them.")
    definitions = tuple(_tool(tool) for tool in body.tools)
    if not template.tools_are_generic:
        return OfferedTools(definitions)
    count, fit = sum(template.count(definition) for definition in definitions), context_tokens // 2
    if count > fit and body.tool_choice in (None, "auto"):
        note = (
            f"The tools' definitions have {count:,} tokens, and at most {fit:,} are shown to this model: it saw none."
        )
        return OfferedTools(notes=(note,), are_left_out=True)
    return OfferedTools(definitions, (GENERIC,))


def looser_tools(tools: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The tools with parameters that say less, for a grammar alone: without the keywords that it does not know, and
    with any object. None where a tool is `strict`."""
    functions = [json.loads(tool)["function"] for tool in tools]
    if not functions or any(function.get("strict") for function in functions):
        return ()
    looser = [
        [{**(one.get("parameters") or {}), **_LENIENT} for one in functions],
        [{"type": "object"}] * len(functions),
    ]
    return tuple(
        tuple(
            json.dumps({"type": "function", "function": {**function, "parameters": parameters}}, ensure_ascii=False)
            for function, parameters in zip(functions, one, strict=True)
        )
        for one in looser
    )


def _tool(tool: Tool) -> str:
    """The tool as JSON with only the fields that OpenAI's API defines, in a fixed order, so that the same tools always
    begin the same history."""
    try:
        function = tool.function.model_dump(exclude_none=True, include=set(TOOL_KEYS))
        return clean_exactly(json.dumps({"type": "function", "function": function}, ensure_ascii=False))
    except (RecursionError, ValueError):
        raise Problem(400, "A tool's parameters are nested too deeply.", "invalid_value", "tools") from None
