"""What an answer must look like, as data: the engine lets the model choose among the tokens that keep to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

GrammarKind = Literal["json_schema", "regex", "gbnf", "lark"]


@dataclass(frozen=True, slots=True)
class Grammar:
    """`text` is a JSON schema as JSON, a regular expression, or a grammar in llama.cpp's or llguidance's notation. It
    `has_text` where an answer may begin with any text."""

    kind: GrammarKind
    text: str
    has_text: bool = False


_MAPS = ("properties", "$defs", "definitions")  # from names to schemas
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_ONES = ("items", "additionalProperties", "contains", "propertyNames")
# With these the properties of one object are stated in several places, or what is added would be taken away elsewhere.
_ELSEWHERE = frozenset(
    {"not", "if", "then", "else", "dependentSchemas", "dependentRequired", "dependencies", "unevaluatedProperties"}
    | {"contains", "$dynamicRef", "$recursiveRef"}
)
_OWN = frozenset({"properties", "required", "minProperties"})  # `_lists_all` compares them with each other
_OTHERS = ("anyOf", "oneOf", "$ref", "patternProperties")
_VALUES = frozenset({"const", "enum"})


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with `additionalProperties: false` in each object that lists its properties and says nothing of
    others. What keeps to it keeps to the schema itself. A small model would go on inventing properties, and most
    programs fail at one that they do not know. A schema that states the properties of one object in several places
    stays as it is."""
    every = [*_subschemas(schema)]
    if any(_is_combined(one) for one in every):
        return schema
    return _closed(schema)


def _is_combined(schema: dict[str, Any]) -> bool:
    together = schema.get("allOf")
    places = len(together) if isinstance(together, list) else 0
    places += sum(name in schema for name in _OTHERS)
    places += (not _OWN.isdisjoint(schema)) + (not _VALUES.isdisjoint(schema))
    return places > 1 or not _ELSEWHERE.isdisjoint(schema)


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    found = dict(schema)
    for name in _MAPS:
        if isinstance(value := schema.get(name), dict):
            found[name] = {key: _closed(one) if isinstance(one, dict) else one for key, one in value.items()}
    for name in _LISTS:
        if isinstance(value := schema.get(name), list):
            found[name] = [_closed(one) if isinstance(one, dict) else one for one in value]
    for name in _ONES:
        if isinstance(value := schema.get(name), dict):
            found[name] = _closed(value)
    if "additionalProperties" not in schema and _lists_all(schema):
        found["additionalProperties"] = False
    return found


def _lists_all(schema: dict[str, Any]) -> bool:
    """Whether it lists properties, those that it requires among them, and as many as it requires."""
    properties, required = schema.get("properties"), schema.get("required") or []
    least = schema.get("minProperties", 0)
    if not isinstance(properties, dict) or not isinstance(required, list) or not isinstance(least, int | float):
        return False
    if len(properties) < least:
        return False
    return all(isinstance(name, str) and name in properties for name in required)


def _subschemas(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The schema and all that are in it."""
    yield schema
    held: list[Any] = [schema.get(name) for name in _ONES]
    held += [one for name in _MAPS if isinstance(value := schema.get(name), dict) for one in value.values()]
    held += [one for name in _LISTS if isinstance(value := schema.get(name), list) for one in value]
    for one in held:
        if isinstance(one, dict):
            yield from _subschemas(one)
