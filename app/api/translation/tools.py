"""The tools that a request offers the model."""

from __future__ import annotations

import json

from app.api.requests import ChatCompletionRequest, Tool
from app.api.translation.unsupported import unsupported
from app.problems import Problem
from sessions.text import clean_exactly

TOOL_KEYS = ("name", "description", "parameters", "strict")


def tools_of(body: ChatCompletionRequest, takes_tools: bool) -> tuple[str, ...]:
    """A JSON text for each. Raises `Problem`."""
    if not body.tools:
        if body.tool_choice not in (None, "none", "auto"):
            raise unsupported("tool_choice", "tool_choice needs tools.")
        return ()
    if body.tool_choice == "none":
        return ()
    if body.tool_choice not in (None, "auto"):
        raise unsupported("tool_choice", "A call cannot be forced: tool_choice must be 'auto' or 'none'.")
    if not takes_tools:
        raise unsupported("tools", "This model's chat template does not support tools. Send the request without them.")
    return tuple(_tool(tool) for tool in body.tools)


def _tool(tool: Tool) -> str:
    """The tool as JSON with only the fields that OpenAI's API defines, in a fixed order, so that the same tools always
    begin the same history."""
    try:
        function = tool.function.model_dump(exclude_none=True, include=set(TOOL_KEYS))
        return clean_exactly(json.dumps({"type": "function", "function": function}, ensure_ascii=False))
    except (RecursionError, ValueError):
        raise Problem(400, "A tool's parameters are nested too deeply.", "invalid_value", "tools") from None
