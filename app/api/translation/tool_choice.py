"""Which of its tools a request lets the model call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.api.requests import Tool
from app.api.translation.unsupported import unsupported


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
    named = asked.get("function", {}) if isinstance(asked, dict) else {}
    if name is not None and (set(asked) - {"type", "name", "function"} or set(named) - {"name"}):
        raise unsupported("tool_choice", "tool_choice of type function has the function's name, and nothing else.")
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
    rest = {name: value for name, value in asked.items() if name != "type"}
    said = rest.pop("allowed_tools") if "allowed_tools" in rest else rest
    if not isinstance(said, dict) or set(said) - {"mode", "tools"} or (rest and said is not rest):
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
