"""The format that a request asks the answer to keep to: JSON, a schema, a pattern, a grammar, or a call of a tool."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from app.api.requests import ChatCompletionRequest
from app.api.translation.tool_choice import ToolChoice, choice_of
from app.api.translation.unsupported import unsupported
from model_runtime.interface.chat import TurnTemplate
from model_runtime.interface.grammar import Grammar, closed

ANY_OBJECT = {"type": "object"}
MOST_CHARS = 200_000
_STRUCTURED = {"json": "guided_json", "regex": "guided_regex", "choice": "guided_choice", "grammar": "guided_grammar"}


def format_of(
    body: ChatCompletionRequest, template: TurnTemplate, tools: tuple[str, ...], lenient: tuple[str, ...] = ()
) -> tuple[str, Grammar] | None:
    """(the field that asks for it, the grammar); None where the answer is free. `tools` are those that are offered,
    `lenient` as in `TurnTemplate.call_grammar`. Raises `Problem`."""
    found = [*_asked_for(body)]
    if len(found) > 1:
        one, other = found[0][0], found[1][0]
        raise unsupported(other, f"{one} and {other} ask for two formats of one answer: send one of them.")
    choice = choice_of(body.tool_choice, body.tools or ())
    held = callable_tools(choice, tools)
    if choice.mode == "required":
        if found:
            raise unsupported(found[0][0], f"A forced call excludes {found[0][0]}: send one of them.")
        return "tool_choice", Grammar("lark", template.call_grammar(held, lenient))
    if found and held:
        return found[0][0], _or_a_call(found[0], template, held, lenient)
    if held and not choice.is_free:
        return "tool_choice", Grammar("lark", template.call_grammar(held, lenient, or_text=True), has_text=True)
    return found[0] if found else None


def _asked_for(body: ChatCompletionRequest) -> Iterator[tuple[str, Grammar]]:
    if (schema := _response_schema(body.response_format)) is not None:
        yield "response_format", _schema("response_format", schema)
    fields: dict[str, Any] = {
        name: value
        for name in ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "json_schema", "grammar")
        if (value := getattr(body, name)) not in (None, "", {}, [])
    }
    for name, value in (body.structured_outputs or {}).items():
        if value in (None, "", {}, []):
            continue
        if name not in _STRUCTURED:
            raise unsupported(f"structured_outputs.{name[:60]}", f"structured_outputs.{name[:60]} is not supported.")
        fields[_STRUCTURED[name]] = value
    for name, value in fields.items():
        yield name, _grammar(name, value)


def _response_schema(asked: Any) -> Any:
    if asked is None or asked == {"type": "text"}:
        return None
    kind = asked.get("type") if isinstance(asked, dict) else None
    if kind == "json_object":
        _refuse_others("response_format", asked, ("type", "schema", "strict"))
        return asked.get("schema") or ANY_OBJECT
    described = asked.get("json_schema") if kind == "json_schema" else None
    if not isinstance(described, dict):
        sentence = "response_format must be of type 'text', 'json_object', or 'json_schema' with a json_schema."
        raise unsupported("response_format", sentence)
    _refuse_others("response_format", asked, ("type", "json_schema", "strict"))
    _refuse_others("response_format.json_schema", described, ("name", "description", "schema", "strict"))
    return described.get("schema") or ANY_OBJECT


def _refuse_others(where: str, asked: dict[str, Any], known: tuple[str, ...]) -> None:
    """Raises `Problem` for what an object asks for beside what is `known`. `strict` or not, the schema holds."""
    for name, value in asked.items():
        if name not in known and value not in (None, "", [], {}):
            raise unsupported(
                f"{where}.{name[:60]}", f"{where}.{name[:60]} is not supported, so it would change nothing."
            )


def _grammar(name: str, value: Any) -> Grammar:
    if name in ("guided_json", "json_schema"):
        return _schema(name, _parsed(name, value) if isinstance(value, str) else value)
    if name == "guided_choice":
        if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
            raise unsupported(name, "guided_choice must be a list of texts that are not empty.")
        return _sized(name, Grammar("lark", "start: " + " | ".join(json.dumps(one) for one in value)))
    if not isinstance(value, str):
        raise unsupported(name, f"{name} must be text.")
    return _sized(name, Grammar("regex" if name == "guided_regex" else "gbnf", value))


def _parsed(name: str, text: str) -> Any:
    if len(text) > MOST_CHARS:
        raise unsupported(name, f"{name} has more than {MOST_CHARS:,} characters.")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise unsupported(name, f"{name} is no JSON.") from None


def _schema(name: str, schema: Any) -> Grammar:
    if not isinstance(schema, dict):
        raise unsupported(name, f"{name} needs a JSON schema, which is an object.")
    return _sized(name, Grammar("json_schema", json.dumps(closed(schema), ensure_ascii=False)))


def _sized(name: str, grammar: Grammar) -> Grammar:
    if len(grammar.text) > MOST_CHARS:
        raise unsupported(name, f"{name} has more than {MOST_CHARS:,} characters.")
    return grammar


def callable_tools(choice: ToolChoice, tools: tuple[str, ...]) -> tuple[str, ...]:
    """The tools that a choice leaves."""
    if choice.names is None:
        return tools
    return tuple(tool for tool in tools if json.loads(tool)["function"]["name"] in choice.names)


def _or_a_call(
    asked: tuple[str, Grammar], template: TurnTemplate, tools: tuple[str, ...], lenient: tuple[str, ...]
) -> Grammar:
    """What keeps to the format, or calls a tool: the model's choice."""
    name, grammar = asked
    if grammar.kind != "json_schema":
        raise unsupported(name, f"{name} excludes tools: send one of them.")
    calls = template.call_grammar(tools, lenient).replace("start:", "called:", 1)
    return Grammar("lark", f"start: called | said\nsaid: %json {grammar.text}\n{calls}")
