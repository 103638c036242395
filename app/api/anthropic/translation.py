"""Translates a request to `/v1/messages` into one for a chat completion, which is then checked like any other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from app.api.anthropic.messages import messages_of, system_of
from app.api.anthropic.requests import AnthropicTool, CountRequest, MessagesRequest
from app.api.fields.other_fields import ignored_fields
from app.api.requests import ChatCompletionRequest, FunctionDefinition, Tool
from app.api.translation.unsupported import unsupported
from model_runtime.interface.chat import TurnTemplate

SAME = ("model", "temperature", "top_p", "top_k", "max_tokens", "stream")
NAMES = {
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "reasoning_effort": "output_config.effort",
}
NO_THOUGHTS = "This model does not think before it answers."


@dataclass(frozen=True, slots=True)
class AskedMessage:
    """`marks_cache`: the request says where a cache entry is to end, as Anthropic's API needs it."""

    chat: ChatCompletionRequest
    ignored: tuple[str, ...]
    notes: tuple[str, ...]
    marks_cache: bool


def chat_of(body: CountRequest, template: TurnTemplate) -> AskedMessage:
    """Raises `Problem` for what cannot be honoured."""
    named = ignored_fields(body)
    marks = tuple(name for name in named if name.split(".")[-1] == "cache_control")
    ignored = [name for name in named if name not in marks]
    notes: list[str] = []
    _refuse_edits(body.context_management, ignored)
    system, left_out = system_of(body.system)
    ignored += left_out
    fields: dict[str, Any] = {name: getattr(body, name) for name in SAME if name in body.model_fields_set}
    fields["messages"] = [*system, *messages_of(body.messages, ignored)]
    if body.tools:
        fields["tools"] = [_tool(place, tool) for place, tool in enumerate(body.tools)]
    if body.tool_choice is not None:
        fields |= _choice(body.tool_choice)
    fields |= _thinking(body.thinking, template, ignored, notes)
    fields |= _output(body)
    if isinstance(body, MessagesRequest) and body.stop_sequences:
        fields["stop"] = body.stop_sequences
    return AskedMessage(
        ChatCompletionRequest.model_construct(None, **fields), tuple(ignored), tuple(notes), bool(marks)
    )


def _tool(place: int, tool: AnthropicTool) -> Tool:
    if tool.type not in (None, "custom"):
        sentence = (
            f"tools.{place}: The tool {tool.type[:60]!r} is one of Anthropic's own. Define it with an input_schema."
        )
        raise unsupported(f"tools.{place}.type", sentence)
    return Tool.model_construct(
        type="function",
        function=FunctionDefinition.model_construct(
            name=tool.name, description=tool.description, parameters=tool.input_schema, strict=tool.strict
        ),
    )


def _choice(asked: dict[str, Any]) -> dict[str, Any]:
    kind, rest = asked.get("type"), {name: value for name, value in asked.items() if name != "type"}
    single = rest.pop("disable_parallel_tool_use", False)
    if single not in (None, False, True):
        raise unsupported("tool_choice.disable_parallel_tool_use", "disable_parallel_tool_use must be true or false.")
    choices: dict[str, Any] = {"auto": "auto", "any": "required", "none": "none"}
    if kind == "tool" and isinstance(rest.get("name"), str):
        choices["tool"] = {"type": "function", "function": {"name": rest.pop("name", None)}}
    if not isinstance(kind, str) or kind not in choices or any(value is not None for value in rest.values()):
        raise unsupported("tool_choice", "tool_choice must be of type auto, any, none, or tool with a name.")
    return {"tool_choice": choices[kind], **({"parallel_tool_calls": False} if single else {})}


def _thinking(
    asked: dict[str, Any] | None, template: TurnTemplate, ignored: list[str], notes: list[str]
) -> dict[str, Any]:
    """The switch for thoughts. Clients ask for thoughts whatever the model is: one without any answers all the same."""
    if asked is None:
        return {}
    kind = asked.get("type")
    for name in asked:
        if name not in ("type", "budget_tokens", "display"):
            raise unsupported(f"thinking.{name[:60]}", f"thinking.{name[:60]} is not supported.")
    if kind not in ("enabled", "adaptive", "disabled"):
        raise unsupported("thinking", "thinking must be of type enabled, adaptive or disabled.")
    ignored += [f"thinking.{name}" for name in ("budget_tokens", "display") if asked.get(name) is not None]
    if kind != "disabled" and not template.has_thoughts:
        ignored.append("thinking")
        notes.append(NO_THOUGHTS)
        return {}
    return {"thinking": {"type": "disabled" if kind == "disabled" else "enabled"}}


def _output(body: CountRequest) -> dict[str, Any]:
    asked = dict(body.output_config or {})
    effort, form = asked.pop("effort", None), asked.pop("format", None) or body.output_format
    for name, value in asked.items():
        if value is not None:
            raise unsupported(f"output_config.{name[:60]}", f"output_config.{name[:60]} is not supported.")
    fields: dict[str, Any] = {}
    if effort is not None:
        if not isinstance(effort, str):
            raise unsupported("output_config.effort", "output_config.effort must be text.")
        fields["reasoning_effort"] = effort
    if form is not None:
        if not isinstance(form, dict) or form.get("type") != "json_schema" or not isinstance(form.get("schema"), dict):
            raise unsupported(
                "output_config.format",
                "output_config.format (or output_format) must be of type json_schema, with a schema.",
            )
        fields["response_format"] = {"type": "json_schema", "json_schema": {"schema": form["schema"]}}
    return fields


def _refuse_edits(asked: dict[str, Any] | None, ignored: list[str]) -> None:
    """Earlier thoughts are what the model's template makes of them. Nothing else is taken out of a history."""
    if not asked:
        return
    edits = asked.get("edits") or []
    is_known = set(asked) <= {"edits"} and isinstance(edits, list)
    if not is_known or any(not str(isinstance(e, dict) and e.get("type")).startswith("clear_thinking") for e in edits):
        raise unsupported(
            "context_management", "This server takes nothing out of a history, so leave context_management out."
        )
    ignored.append("context_management")
